-- Give an entry new times without sending its value again.
-- KEYS[1]  the lease on computing it, taken away even if there is no entry
-- KEYS[2]  the entry
-- KEYS[3]  the channel
-- ARGV[1]  where the times stand in the header
-- ARGV[2]  the new times, packed
-- ARGV[3]  milliseconds the entry lives from now on; 0: for ever; empty: as before
-- ARGV[4]  how an entry begins
-- Result   1, or 0 if there is no such entry
-- O(1) beyond the length of ARGV[2]
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
