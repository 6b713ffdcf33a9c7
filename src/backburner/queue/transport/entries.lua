-- What several scripts do with an entry: a list, a newline, the message that belongs there. Stands before their text.
local function split(entry)
    local ends = string.find(entry, '\n', 1, true)
    return string.sub(entry, 1, ends - 1), string.sub(entry, ends + 1)
end

-- The text of a message is never parsed and written anew: Lua would turn [] into {}. Of several such keys the last one
-- is the message's own, for properties come after the headers, where users may write what they like.
local function mark_redelivered(message)
    if string.find(message, '"redelivered": true', 1, true) then
        return message
    end
    return (string.gsub(message, '^(.*"delivery_info":%s*{)(%s*")', '%1"redelivered": true, %2', 1))
end

local function delivery_tag(message)
    return string.match(message, '^.*"delivery_tag":%s*"([^"]+)"') or redis.sha1hex(message)
end

local function job_id(message)
    return string.match(message, '"id":%s*"([^"]+)"')
end

-- The name of an entry in a sorted set: the job's id, so that it can be found, unless another has it.
local function member_in(set, message)
    local id = job_id(message)
    if id and not redis.call('ZSCORE', set, id) then
        return id
    end
    return delivery_tag(message)
end

local function time()
    local now = redis.call('TIME')
    return now[1] + now[2] / 1000000
end

-- All that a consumer has leased, the latest first.
local function leases_of(leased)
    local all, leases = redis.call('HGETALL', leased), {}
    for i = 1, #all, 2 do
        leases[#leases + 1] = {number = tonumber(all[i]), entry = all[i + 1]}
    end
    table.sort(leases, function(a, b) return a.number > b.number end)
    return leases
end

local function delay(delayed, entries, entry, due)
    local _, message = split(entry)
    local member = member_in(delayed, message)
    redis.call('ZADD', delayed, string.format('%.6f', due), member)
    redis.call('HSET', entries, member, entry)
end

local function bury(failed, entry, reason, detail)
    local list, message = split(entry)
    local member = member_in(failed, message)
    redis.call('ZADD', failed, string.format('%.6f', time()), member)
    redis.call('HSET', failed .. ':' .. member, 'reason', reason, 'detail', detail, 'list', list, 'message', message)
    if reason == 'crashed' or reason == 'undecodable' then
        redis.call('SADD', failed .. '-untold', member)
    end
end

