-- Take a lock that nobody holds. An owner that holds it already keeps its fencing number and gets a new end. The
-- fencing number grows with every owner: it is the server's time in microseconds or, where the clock was set back, the
-- last number plus one.
--
-- KEYS[1]  the lock, a hash: owner, until (milliseconds), fence
-- ARGV[1]  token of the owner
-- ARGV[2]  milliseconds that the lock is held at most
-- ARGV[3]  milliseconds that the last fencing number is remembered beyond that
--
-- Returns {fence, 0}, or {0, milliseconds until the holder's time is up}. O(1).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'owner', 'until', 'fence')
local left = held[1] and tonumber(held[2]) - now or 0
local fence = held[3]
if left > 0 and held[1] ~= ARGV[1] then return {0, left} end
if left <= 0 or not fence then
  fence = string.format('%.0f', math.max(time[1] * 1000000 + time[2], (tonumber(fence) or 0) + 1))
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'until', string.format('%.0f', now + ARGV[2]), 'fence', fence)
redis.call('PEXPIRE', KEYS[1], ARGV[2] + ARGV[3])
return {tonumber(fence), 0}
