-- Allow something at most so often (GCRA). The state is a single time: the moment up to which the rate is used up.
-- Everything else that the caller wants to know follows from it and the present, and is computed with the same
-- arithmetic by `limits.judge`. All times are whole microseconds, so that numbers stay exact.
--
-- KEYS[1]  the state
-- ARGV[1]  how far this call moves the state: the time that each call takes at this rate, times the cost
-- ARGV[2]  how far the state may be ahead of the present
--
-- Returns {present, state before}. O(1).
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local tolerance = tonumber(ARGV[2])
local stored = tonumber(redis.call('GET', KEYS[1]) or 0)
-- No further ahead than a call can have moved it: the clock may have been set back since.
local before = math.min(math.max(stored, now), now + tolerance)
local after = before + ARGV[1]
if after - now > tolerance then after = before end
if after > before or before < stored then
  redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000))
end
return {now, before}
