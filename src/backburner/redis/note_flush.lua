-- Note that everything begins to be removed: what is being computed must not be stored by who finishes meanwhile.
-- KEYS[1]  where
-- ARGV[1]  milliseconds that this is noted, should nobody take it back
-- O(1)
local time = redis.call('TIME')
redis.call('SET', KEYS[1], string.format('%.0f', time[1] * 1000000 + time[2]), 'PX', ARGV[1])
