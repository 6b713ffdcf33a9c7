-- Give an entry new times without sending its value again.
--
-- KEYS[1]  the lease on computing it, taken away even if there is no entry
-- KEYS[2]  the entry
-- KEYS[3]  the channel
-- ARGV[1]  offset of the times in an entry
-- ARGV[2]  the new times, packed
-- ARGV[3]  lifetime of the entry from now on, in milliseconds; 0: for ever; '': as before
-- ARGV[4]  the bytes that every entry begins with
--
-- Returns 1, or 0 if there is no such entry. O(1).
if redis.call('GETRANGE', KEYS[2], 0, #ARGV[4] - 1) ~= ARGV[4] then
  redis.call('UNLINK', KEYS[1])
  return 0
end
write(KEYS[1], 'SETRANGE', KEYS[2], ARGV[1], ARGV[2])
if ARGV[3] == '0' then
  redis.call('PERSIST', KEYS[2])
elseif ARGV[3] ~= '' then
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return 1
