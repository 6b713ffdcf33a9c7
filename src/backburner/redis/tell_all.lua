-- Say that anything may have changed, now that everything was removed.
-- KEYS[1]  where it is noted who is removing everything
-- KEYS[2]  the channel
-- ARGV[1]  who has done so
-- O(log of how many are at it + number of listeners)
redis.call('ZREM', KEYS[1], ARGV[1])
tell('')
