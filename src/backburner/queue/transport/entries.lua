-- Shared by the scripts of this folder; stands before their text. An entry is a list, a newline, and the message that
-- belongs in that list. Of text that is not an entry, `split` returns '' as the list and all of it as the message.
local function split(entry)
    local ends = string.find(entry, '\n', 1, true) or 0
    return string.sub(entry, 1, math.max(ends - 1, 0)), string.sub(entry, ends + 1)
end

-- Add a message to a list. Returns whether that succeeded: the key may hold another type, or be forbidden by an ACL. An
-- error that ended the script here would not undo its removals, which come first, and the message would be lost.
local function push(command, list, message)
    return list ~= '' and type(redis.pcall(command, list, message)) == 'number'
end

-- The text of a message is never parsed and written again: Lua would turn [] into {}. If the key occurs several times,
-- the last one is the message's own: properties come after the headers, in which users may write what they like.
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

-- The name of an entry in a sorted set: the job's id, so that it can be found. If that is taken, by another message or
-- by the same one in another queue, delivery tag and list are put before it. enqueue.lua names entries in the same way.
local function member_in(set, list, message)
    local tag = delivery_tag(message)
    local member = job_id(message) or tag
    if redis.call('ZSCORE', set, member) then
        return tag .. '\n' .. list .. '\n' .. member
    end
    return member
end

local function time()
    local now = redis.call('TIME')
    return now[1] + now[2] / 1000000
end

-- Remove a lease, and return its entry; false if the message is no longer leased. Scripts that move a message do this
-- first: a server whose memory is full refuses one that begins by adding.
local function take(leased, number)
    local entry = redis.call('HGET', leased, number)
    if entry then
        redis.call('HDEL', leased, number)
    end
    return entry
end

-- How often this has happened to a message, this time included; remembered for some seconds.
local function count(prefix, message, seconds)
    local key = prefix .. delivery_tag(message)
    local times = redis.call('INCR', key)
    redis.call('EXPIRE', key, seconds)
    return times
end

-- Everything that a consumer has leased, the latest first.
local function leases_of(leased)
    local all, leases = redis.call('HGETALL', leased), {}
    for i = 1, #all, 2 do
        leases[#leases + 1] = {number = tonumber(all[i]), entry = all[i + 1]}
    end
    table.sort(leases, function(a, b) return a.number > b.number end)
    return leases
end

-- Keep a lease of a consumer that ends although its message could not be put back. The lease passes to an invented
-- consumer that counts as dead in ten seconds, so that recovery tries again. It has another name, lest a consumer that
-- was only paused finds itself alive; and, by the number in that name, it runs 0 messages at a time, so that none of
-- them is blamed for its death.
local function bequeath(consumers, consumer, leased, lease)
    local function heir(name)
        return (string.gsub(name, ':%d+(:%x+)$', ':0%1'))
    end
    redis.call('ZADD', consumers, string.format('%.6f', time() + 10), heir(consumer))
    redis.call('HSET', heir(leased), lease.number, lease.entry)
end

local function delay(delayed, entries, entry, due)
    local member = member_in(delayed, split(entry))
    redis.call('ZADD', delayed, string.format('%.6f', due), member)
    redis.call('HSET', entries, member, entry)
end

local function bury(failed, entry, reason, detail)
    local list, message = split(entry)
    local member = member_in(failed, list, message)
    redis.call('ZADD', failed, string.format('%.6f', time()), member)
    redis.call('HSET', failed .. ':' .. member, 'reason', reason, 'detail', detail, 'list', list, 'message', message)
    if reason == 'crashed' or reason == 'undecodable' or reason == 'unrecorded' then
        redis.call('SADD', failed .. '-untold', member)
    end
end

