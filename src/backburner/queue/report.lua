-- Add events to a job's stream, tell who listens, and keep what the job's state says about its progress.
--
-- KEYS[1]    the stream; what is added is published on a channel of the same name, as "<id> <event>"
-- KEYS[2]    the job's result
-- ARGV[1]    events to keep, about
-- ARGV[2]    seconds to keep them
-- ARGV[3]    what the result is until there is one (JSON), or nothing if that stays
-- ARGV[4..]  the events, JSON
--
-- Returns nothing. O(events).
for i = 4, #ARGV do
    local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'event', ARGV[i])
    redis.call('PUBLISH', KEYS[1], id .. ' ' .. ARGV[i])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then
    local now = state_at(KEYS[2])
    if now ~= 'SUCCESS' and now ~= 'FAILURE' and now ~= 'REVOKED' then
        redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
    end
end
