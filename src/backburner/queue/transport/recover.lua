-- Put what a dead consumer had leased back to the front of its lists, and what keeps killing consumers into the failed
-- set.
--
-- A consumer starts its messages in the order in which it leased them. So the oldest leases, as many as it runs at a
-- time (the number in its name, unless it has said another one since), had been started when it died; no others are
-- suspected. What cannot be put back is tried again some seconds later.
--
-- KEYS[1] the consumers
-- KEYS[2] the failed set
-- KEYS[3] how many messages consumers run at a time
-- ARGV[1] prefix of the keys that hold a consumer's leases
-- ARGV[2] prefix of the keys that count a message's crashes
-- ARGV[3] the number of crashes at which a message has failed
-- ARGV[4] seconds to remember crashes
--
-- Returns the dead consumer (or '' if none is dead), how many messages went back, and the ids of those that failed.
-- O(m log m) for m leases.
local consumers, failed, limit = KEYS[1], KEYS[2], tonumber(ARGV[3])
local dead = redis.call('ZRANGEBYSCORE', consumers, '-inf', time(), 'LIMIT', 0, 1)[1]
if not dead then
    return {'', 0}
end

local leased = ARGV[1] .. dead
local leases = leases_of(leased)
local slots = redis.call('HGET', KEYS[3], dead) or string.match(dead, ':(%d+):%x+$') or 1

-- Removed first: a server whose memory is full refuses a script that begins by adding.
redis.call('DEL', leased)
redis.call('ZREM', consumers, dead)
redis.call('HDEL', KEYS[3], dead)

local started = #leases - tonumber(slots)
local reply = {dead, 0}
for i, lease in ipairs(leases) do
    local list, message = split(lease.entry)
    local crashes = 0
    if i > started then
        crashes = count(ARGV[2], message, ARGV[4])
    end
    if crashes >= limit then
        bury(failed, lease.entry, 'crashed', 'its worker died ' .. crashes .. ' times; the last was ' .. dead)
        reply[#reply + 1] = job_id(message) or ''
    elseif push('RPUSH', list, mark_redelivered(message)) then
        reply[2] = reply[2] + 1
    else
        bequeath(consumers, dead, leased, lease)
    end
end
return reply
