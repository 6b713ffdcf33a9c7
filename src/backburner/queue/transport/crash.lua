-- A child process died while it ran a leased message: put the message back for another try, or move it to the failed
-- set once it has killed too many.
--
-- KEYS[1] the consumer's leases
-- KEYS[2] the failed set
-- ARGV[1] number of the lease
-- ARGV[2] prefix of the keys that count a message's crashes
-- ARGV[3] the number of crashes at which a message has failed
-- ARGV[4] seconds to remember crashes
--
-- Returns 1, 0 if the message has failed, or -1 if it is no longer leased. It stays leased if its list does not take
-- it. O(log failed).
local entry = take(KEYS[1], ARGV[1])
if not entry then
    return -1
end
local list, message = split(entry)
local crashes = count(ARGV[2], message, ARGV[4])
if crashes >= tonumber(ARGV[3]) then
    bury(KEYS[2], entry, 'crashed', 'its worker died ' .. crashes .. ' times; the last was a process of the pool')
    return 0
end
if not push('RPUSH', list, mark_redelivered(message)) then
    redis.call('HSET', KEYS[1], ARGV[1], entry)
end
return 1
