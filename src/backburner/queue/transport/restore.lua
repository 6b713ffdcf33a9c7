-- Put leased messages back to the front of their lists.
--
-- KEYS[1]   the consumer's leases
-- ARGV[1]   1 if they have been seen by a task, so that the next one is told
-- ARGV[2..] their numbers, the highest first
--
-- Returns how many were still leased. O(messages).
local restored = 0
for i = 2, #ARGV do
    local entry = redis.call('HGET', KEYS[1], ARGV[i])
    if entry then
        local list, message = split(entry)
        redis.call('HDEL', KEYS[1], ARGV[i])
        redis.call('RPUSH', list, ARGV[1] == '1' and mark_redelivered(message) or message)
        restored = restored + 1
    end
end
return restored
