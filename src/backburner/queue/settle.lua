-- Store states and results of jobs and acknowledge messages, in one step: no message is done with whose result is not
-- there.
--
-- KEYS[1]    the leases of a consumer; any of the others if nothing is acknowledged
-- KEYS[2..]  results, as Celery has them: JSON that begins with the state; what is stored is published there too
-- ARGV[1]    how many leases are acknowledged
-- ARGV[2..]  their numbers; then for each result its JSON, seconds to keep it (0 for ever), and when its job began, as
--            `date_done` is written, if nothing was stored for it since then by who ran it, or ''
--
-- What has ended stays as it is: a late double changes nothing. Only a job that has begun again after that may still
-- end in another way, unless it has succeeded. Returns how many were stored. O(results + acknowledged).
local acknowledged = tonumber(ARGV[1])

local function ended_since(began, json)
    local ended = string.match(json, '.*"date_done":%s*"([^"]+)"')
    return ended ~= nil and ended >= began
end

local function stays(key, latest, began)
    local before = latest and state(latest) or state_at(key)
    if before == 'FAILURE' or before == 'REVOKED' then
        return began == '' or ended_since(began, latest or redis.call('GET', key))
    end
    return before == 'SUCCESS'
end

local stored, latest = {}, {}
for i = 2, #KEYS do
    local at = acknowledged + 3 * (i - 2) + 2
    if not stays(KEYS[i], latest[KEYS[i]], ARGV[at + 2]) then
        latest[KEYS[i]] = ARGV[at]
        stored[#stored + 1] = {KEYS[i], ARGV[at], tonumber(ARGV[at + 1])}
    end
end

-- Removed first: a server whose memory is full refuses a script that begins by adding. If nothing is acknowledged, what
-- is replaced is removed.
if acknowledged == 0 and #stored > 0 then
    redis.call('DEL', stored[1][1])
end
for first = 2, acknowledged + 1, 1000 do
    redis.call('HDEL', KEYS[1], unpack(ARGV, first, math.min(first + 999, acknowledged + 1)))
end
for _, each in ipairs(stored) do
    local key, result, keep = each[1], each[2], each[3]
    if keep > 0 then
        redis.call('SET', key, result, 'EX', keep)
    else
        redis.call('SET', key, result)
    end
    redis.call('PUBLISH', key, result)
end
return #stored
