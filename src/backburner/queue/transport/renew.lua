-- Renew a consumer's lease, or begin it.
--
-- KEYS[1] the consumers
-- KEYS[2] the failed messages whose failure has yet to be written as their job's result
-- ARGV[1] the consumer
-- ARGV[2] seconds
-- ARGV[3] 1 to begin a lease; otherwise a consumer that was taken for dead stays dead
-- ARGV[4] what time it should be here: the time of the last reply and what has passed since by the consumer's clock. If
--         it is not, by half a lease, then this server's clock was stepped, and no lease ends when it should: those of
--         the living ended too soon, or those of the dead last too long. Then all of them begin anew.
--
-- Returns {1, or 0 if the consumer was taken for dead; the number of consumers whose lease has run out; the number of
-- failures that have yet to be written; the time}. O(log consumers), or O(consumers) after a step.
local now = time()
local alive = 0
-- Removed first: a server whose memory is full refuses a script that begins by adding, and leases must not end then.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 or ARGV[3] == '1' then
    redis.call('ZADD', KEYS[1], string.format('%.6f', now + ARGV[2]), ARGV[1])
    alive = 1
    if ARGV[4] and math.abs(now - ARGV[4]) > ARGV[2] / 2 then
        for _, consumer in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
            redis.call('ZADD', KEYS[1], string.format('%.6f', now + ARGV[2]), consumer)
        end
    end
end
local dead = redis.call('ZCOUNT', KEYS[1], '-inf', now)
return {alive, dead, redis.call('SCARD', KEYS[2]), string.format('%.6f', now)}
