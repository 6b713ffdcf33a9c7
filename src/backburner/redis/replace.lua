-- Write an entry only if the one that is there is still the one that the caller found dead or unreadable.
--
-- KEYS[1]  the lease on computing it
-- KEYS[2]  the entry
-- KEYS[3]  the channel
-- ARGV[1]  the bytes found
-- ARGV[2]  the new bytes
-- ARGV[3]  lifetime of the new entry in milliseconds; 0: for ever
--
-- Returns 1, or 0 if somebody else was faster. O(length of the entry).
local found = redis.call('GET', KEYS[2])
if found and found ~= ARGV[1] then return 0 end
put(KEYS[1], KEYS[2], ARGV[2], ARGV[3])
return 1
