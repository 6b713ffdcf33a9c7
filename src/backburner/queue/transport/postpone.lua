-- Move a leased message to the delayed set.
--
-- KEYS[1] the consumer's leases
-- KEYS[2] the delayed set
-- KEYS[3] its entries
-- ARGV[1] number of the lease
-- ARGV[2] when it is due, in seconds since 1970
--
-- Returns 1, or 0 if it is no longer leased. O(log delayed).
local entry = take(KEYS[1], ARGV[1])
if not entry then
    return 0
end
delay(KEYS[2], KEYS[3], entry, tonumber(ARGV[2]))
return 1
