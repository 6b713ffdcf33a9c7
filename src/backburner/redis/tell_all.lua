-- Announce that anything may have changed, now that everything has been removed.
--
-- KEYS[1]  the notes of the flushes that are under way
-- KEYS[2]  the channel
-- ARGV[1]  the flush that is done
--
-- Returns nothing. O(listeners + log flushes under way).
redis.call('ZREM', KEYS[1], ARGV[1])
tell('')
