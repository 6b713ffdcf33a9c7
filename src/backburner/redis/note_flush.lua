#!lua flags=allow-oom
-- Note that everything is about to be removed: computations that finish in the meantime must not store anything. A
-- server whose memory is full must be able to be emptied, hence the flag.
--
-- KEYS[1]  the notes: a sorted set of the flushes under way, each with the time when it last said so
-- ARGV[1]  this flush
-- ARGV[2]  milliseconds that the notes are kept, should nobody take them back
--
-- Returns nothing. O(log flushes under way).
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], string.format('%.0f', time[1] * 1000000 + time[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
