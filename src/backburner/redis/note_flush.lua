#!lua flags=allow-oom
-- Note that everything begins to be removed: what is being computed must not be stored by who finishes meanwhile.
-- A server that is full must be able to be emptied, hence the flag.
-- KEYS[1]  where: a sorted set of those that are at it, each with the time at which it said so
-- ARGV[1]  who
-- ARGV[2]  milliseconds that this is noted, should nobody take it back
-- O(log of how many are at it)
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], string.format('%.0f', time[1] * 1000000 + time[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
