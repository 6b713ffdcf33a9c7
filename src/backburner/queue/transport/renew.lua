-- Renew a consumer's lease, or begin it.
--
-- KEYS[1] the consumers
-- KEYS[2] the failed messages whose failure has yet to be written as their job's result
-- ARGV[1] the consumer
-- ARGV[2] seconds
-- ARGV[3] 1 to begin a lease; otherwise a consumer that was taken for dead stays dead
--
-- Returns {1, or 0 if the consumer was taken for dead; the number of consumers whose lease has run out; the number of
-- failures that have yet to be written}. O(log consumers).
local now = time()
local alive = 0
-- Removed first: a server whose memory is full refuses a script that begins by adding, and leases must not end then.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 or ARGV[3] == '1' then
    redis.call('ZADD', KEYS[1], string.format('%.6f', now + ARGV[2]), ARGV[1])
    alive = 1
end
return {alive, redis.call('ZCOUNT', KEYS[1], '-inf', now), redis.call('SCARD', KEYS[2])}
