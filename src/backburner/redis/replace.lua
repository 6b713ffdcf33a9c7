-- Write an entry only if the one there is still the one the caller found dead or unreadable.
-- KEYS[1]  the entry
-- ARGV[1]  the bytes found
-- ARGV[2]  the new bytes
-- ARGV[3]  milliseconds the new entry lives; 0: for ever
-- Result   1, or 0 if somebody else was faster
-- O(length of the entry)
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] then return 0 end
if ARGV[3] == '0' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
