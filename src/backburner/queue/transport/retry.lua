-- Put a message that has failed back, to the end of its list.
--
-- KEYS[1] the failed set
-- KEYS[2] those of them of which their waiters have not been told
-- KEYS[3] what is known of this one
-- KEYS[4] its job's record; left out if nobody knows its job
-- ARGV[1] its name in the set
-- ARGV[2] what the key of a message's crashes begins with
-- ARGV[3] what the key of a message of an unknown task begins with
-- ARGV[4] the record, behind when it was enqueued
-- ARGV[5] seconds to keep the record
--
-- Returns 1, or 0 if it is not among the failed ones any more. Of what its list does not take the error is told, and it
-- stays. O(log failed).
local failed, untold, known, record = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local list, message = unpack(redis.call('HMGET', known, 'list', 'message'))
if not message then
    redis.call('ZREM', failed, ARGV[1])
    return 0
end

redis.call('LPUSH', list, message)
redis.call('ZREM', failed, ARGV[1])
redis.call('SREM', untold, ARGV[1])
redis.call('DEL', known, ARGV[2] .. delivery_tag(message), ARGV[3] .. delivery_tag(message))
if record then
    redis.call('SET', record, string.format('%d', time() * 1000) .. '\n' .. ARGV[4], 'EX', ARGV[5])
end
return 1
