-- Give a lock a new end, counted from now, if its owner still holds it.
--
-- KEYS[1]  the lock
-- ARGV[1]  token of the owner
-- ARGV[2]  milliseconds that the lock is held at most from now on
-- ARGV[3]  milliseconds that the last fencing number is remembered beyond that
--
-- Returns 1, or 0 if the owner does not hold it. O(1).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'owner', 'until')
if held[1] ~= ARGV[1] or tonumber(held[2]) <= now then return 0 end
redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[2] + ARGV[3])
return 1
