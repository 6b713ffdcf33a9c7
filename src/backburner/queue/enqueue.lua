-- Put a message on a queue and record that the job exists; once, even if the caller has to ask again.
--
-- KEYS[1]    the list that is the queue
-- KEYS[2]    the job's record, a hash: name, queue, enqueued (ms since 1970), and the last delivery to each queue
-- KEYS[3..]  lists that expire unless used (queues with x-expires)
-- ARGV[1]    the message
-- ARGV[2]    a token of this delivery: the same token is not pushed to the same queue twice
-- ARGV[3]    seconds to keep the record
-- ARGV[4]    name of the task
-- ARGV[5]    name of the queue
-- ARGV[6]    milliseconds for KEYS[3..]; only read if there are any
--
-- Returns 1, or 0 if the delivery had already been made. O(1).
local delivery = 'delivery:' .. ARGV[5]
if redis.call('HGET', KEYS[2], delivery) == ARGV[2] then
    return 0
end
local now = redis.call('TIME')
redis.call('HSETNX', KEYS[2], 'enqueued', now[1] * 1000 + math.floor(now[2] / 1000))
redis.call('HSET', KEYS[2], 'name', ARGV[4], 'queue', ARGV[5], delivery, ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('LPUSH', KEYS[1], ARGV[1])
for i = 3, #KEYS do
    redis.call('PEXPIRE', KEYS[i], ARGV[6])
end
return 1
