-- Say that anything may have changed, now that everything was removed.
-- KEYS[1]  where it is noted that everything is being removed
-- KEYS[2]  the channel
-- O(number of listeners)
redis.call('UNLINK', KEYS[1])
tell('')
