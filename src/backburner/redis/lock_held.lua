-- Tell whether anybody holds a lock.
--
-- KEYS[1]  the lock
--
-- Returns 1 or 0. O(1).
local till = redis.call('HGET', KEYS[1], 'until')
local time = redis.call('TIME')
return till and tonumber(till) > time[1] * 1000 + math.floor(time[2] / 1000) and 1 or 0
