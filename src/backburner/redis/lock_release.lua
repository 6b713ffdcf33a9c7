-- Give a lock back if it is the owner's, and wake one who waits: the one that has waited longest. A lock that is free
-- wakes too, so that whoever was woken and gives up passes its turn on.
-- KEYS[1]  the lock
-- KEYS[2]  its bell, a list of one item that waiters pop
-- ARGV[1]  token of the owner
-- ARGV[2]  milliseconds the last number is remembered
-- ARGV[3]  milliseconds the bell rings for who was not there yet
-- Result   1, or 0 if the owner does not hold it (any more)
-- O(1)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'owner', 'until')
local alive = held[1] and tonumber(held[2]) > now
local mine = alive and held[1] == ARGV[1]
if alive and not mine then return 0 end
if mine then
  redis.call('HDEL', KEYS[1], 'owner', 'until')
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
redis.call('DEL', KEYS[2])
redis.call('RPUSH', KEYS[2], '1')
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return mine and 1 or 0
