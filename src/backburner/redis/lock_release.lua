-- Give a lock back if it is the owner's, and wake the waiter that has waited longest. A lock that is free wakes one
-- too, so that a waiter which was woken and then gives up can pass its turn on.
--
-- KEYS[1]  the lock
-- KEYS[2]  its bell, a list of one item that waiters pop
-- ARGV[1]  token of the owner
-- ARGV[2]  milliseconds that the last fencing number is remembered
-- ARGV[3]  milliseconds that the bell is kept for a waiter that has yet to block on it
--
-- Returns 1, or 0 if the owner does not hold the lock (any more). O(1).
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
