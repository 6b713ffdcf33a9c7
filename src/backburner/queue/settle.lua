-- Store states and results of jobs and acknowledge messages, in one step: no message is acknowledged whose result is
-- not stored.
--
-- KEYS[1]    the leases of a consumer; any of the other keys if nothing is acknowledged
-- KEYS[2..]  results in Celery's form: JSON that begins with the state. What is stored is also published on these names
-- ARGV[1]    how many leases are acknowledged
-- ARGV[2..]  their numbers; then for each result its JSON, the seconds to keep it (0: for ever), and the time at which
--            the job began, in the form of `date_done`, if its worker has stored nothing since; otherwise ''
--
-- A job that has ended keeps its state: a late duplicate changes nothing. Only a job that began again after its failure
-- or revocation may still end differently.
--
-- Returns how many states were stored, or, when that is done, why they may not be published. O(results + acknowledged).
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

-- Removals come first: a server whose memory is full refuses a script that begins with an addition. If nothing is
-- acknowledged, the result that is about to be replaced is removed.
if acknowledged == 0 and #stored > 0 then
    redis.call('DEL', stored[1][1])
end
for first = 2, acknowledged + 1, 1000 do
    redis.call('HDEL', KEYS[1], unpack(ARGV, first, math.min(first + 999, acknowledged + 1)))
end
local refused
for _, each in ipairs(stored) do
    local key, result, keep = each[1], each[2], each[3]
    if keep > 0 then
        redis.call('SET', key, result, 'EX', keep)
    else
        redis.call('SET', key, result)
    end
    local told = redis.pcall('PUBLISH', key, result)
    refused = type(told) == 'table' and told.err or refused
end
return refused or #stored
