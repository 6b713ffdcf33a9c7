-- Put leased messages back to the front of their lists.
--
-- KEYS[1]   the consumer's leases
-- ARGV[1]   1 if they have been seen by a task, so that the next one is told
-- ARGV[2..] their numbers, the highest first
--
-- Returns how many went back: they were still leased, and their lists took them. What a list did not take stays leased.
-- O(messages).
local restored = 0
for i = 2, #ARGV do
    local entry = take(KEYS[1], ARGV[i])
    if entry then
        local list, message = split(entry)
        if push('RPUSH', list, ARGV[1] == '1' and mark_redelivered(message) or message) then
            restored = restored + 1
        else
            redis.call('HSET', KEYS[1], ARGV[i], entry)
        end
    end
end
return restored
