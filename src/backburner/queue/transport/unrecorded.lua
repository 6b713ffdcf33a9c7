-- A leased message's job has ended, and what it came to could not be recorded: have the job done again after a pause, the
-- longer the more often that has happened, or move the message to the failed set once it has happened too often.
--
-- KEYS[1] the consumer's leases
-- KEYS[2] the failed set
-- KEYS[3] the delayed set
-- KEYS[4] its entries
-- ARGV[1] number of the lease
-- ARGV[2] prefix of the keys that count how often that has happened to a message
-- ARGV[3] the number at which the message has failed
-- ARGV[4] seconds to remember it
-- ARGV[5] the first pause, in seconds; each is four times the one before
-- ARGV[6] the longest pause
-- ARGV[7] why it could not be recorded
--
-- Returns 1, 0 if the message has failed, or -1 if it is no longer leased. O(log delayed + log failed).
local entry = take(KEYS[1], ARGV[1])
if not entry then
    return -1
end
local list, message = split(entry)
local times = count(ARGV[2], message, ARGV[4])
if times >= tonumber(ARGV[3]) then
    redis.call('DEL', ARGV[2] .. delivery_tag(message))
    bury(KEYS[2], entry, 'unrecorded', 'it has ended ' .. times .. ' times, and how could not be recorded: ' .. ARGV[7])
    return 0
end
local pause = math.min(ARGV[5] * 4 ^ (times - 1), tonumber(ARGV[6]))
delay(KEYS[3], KEYS[4], list .. '\n' .. mark_redelivered(message), time() + pause)
return 1
