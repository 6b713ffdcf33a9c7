-- Add events to a job's stream, publish them, and record its progress in the job's state.
--
-- KEYS[1]    the stream; events are also published on a channel of the same name, as "<id> <event>"
-- KEYS[2]    the job's result
-- ARGV[1]    how many events to keep, approximately
-- ARGV[2]    seconds to keep them
-- ARGV[3]    the state to store while the job has not ended (JSON), or '' to leave it as it is
-- ARGV[4..]  the events (JSON)
--
-- Returns nothing, or, when all is done, why the events may not be published. O(events).
local refused
for i = 4, #ARGV do
    local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'event', ARGV[i])
    local told = redis.pcall('PUBLISH', KEYS[1], id .. ' ' .. ARGV[i])
    refused = type(told) == 'table' and told.err or refused
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then
    local now = state_at(KEYS[2])
    if now ~= 'SUCCESS' and now ~= 'FAILURE' and now ~= 'REVOKED' then
        redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])
    end
end
return refused
