-- Note that a consumer runs another number of messages at a time than its name says.
--
-- KEYS[1] the consumers
-- KEYS[2] how many messages consumers run at a time
-- ARGV[1] the consumer
-- ARGV[2] the number
--
-- Returns 1, or 0 if the consumer was taken for dead. O(log consumers).

-- Removed first: a server whose memory is full refuses a script that begins by adding.
redis.call('HDEL', KEYS[2], ARGV[1])
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return 0
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
