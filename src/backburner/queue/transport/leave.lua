-- End a consumer, and put what it still has leased back to the front of its lists. All in one step: a claim that is on
-- its way comes either before it, and is put back, or after it, and is refused.
--
-- KEYS[1] the consumers
-- KEYS[2] the consumer's leases
-- KEYS[3] how many messages consumers run at a time
-- ARGV[1] the consumer
--
-- Returns how many messages went back. Those that could not are left to the recovery of dead consumers. O(m log m) for
-- m leases.
local leases, restored = leases_of(KEYS[2]), 0

-- Removed first: a server whose memory is full refuses a script that begins by adding.
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('HDEL', KEYS[3], ARGV[1])
for _, lease in ipairs(leases) do
    local list, message = split(lease.entry)
    if push('RPUSH', list, mark_redelivered(message)) then
        restored = restored + 1
    else
        bequeath(KEYS[1], ARGV[1], KEYS[2], lease)
    end
end
return restored
