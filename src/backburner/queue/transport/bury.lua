-- Move a leased message to the failed set.
--
-- KEYS[1] the consumer's leases
-- KEYS[2] the failed set
-- ARGV[1] number of the lease
-- ARGV[2] the reason, in one word
-- ARGV[3] the reason, in detail
--
-- Returns 1, or 0 if the message is no longer leased. O(log failed).
local entry = take(KEYS[1], ARGV[1])
if not entry then
    return 0
end
bury(KEYS[2], entry, ARGV[2], ARGV[3])
return 1
