-- Let go of a failed message. A script and no transaction, which a server whose memory is full refuses.
--
-- KEYS[1]  the failed messages
-- KEYS[2]  those whose waiters have not been told
-- KEYS[3]  what is known of it
-- ARGV[1]  its member
--
-- Returns 1 if it was there, otherwise 0. O(log failed).
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('SREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[3])
