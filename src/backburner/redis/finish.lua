-- End a computation: store its value if the lease is still held, give the lease back, and wake who waits for it. Whoever
-- wrote or removed the key meanwhile has taken the lease away, and wins; those who wait for it are woken all the same.
-- KEYS[1]  the lease
-- KEYS[2]  a list on which the others wait
-- KEYS[3]  the entry
-- ARGV[1]  the token of the lease
-- ARGV[2]  the entry; empty: there is nothing to store
-- ARGV[3]  milliseconds that it lives; 0: for ever
-- ARGV[4]  milliseconds that the list is kept for those who have yet to look at it
-- Result   1 if the lease was held, else 0
-- O(length of the entry)
local holder = redis.call('GET', KEYS[1])
local held = holder and string.sub(holder, 1, #ARGV[1]) == ARGV[1]
if held then
  if ARGV[2] ~= '' and ARGV[3] == '0' then
    redis.call('SET', KEYS[3], ARGV[2])
  elseif ARGV[2] ~= '' then
    redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
  end
  redis.call('UNLINK', KEYS[1])
end
if not held or string.sub(holder, -1) == '+' then
  redis.call('RPUSH', KEYS[2], 1)
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
return held and 1 or 0
