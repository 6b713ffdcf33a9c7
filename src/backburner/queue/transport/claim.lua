-- Take messages and lease them to a consumer, in one step: nobody can die between the two.
--
-- KEYS[1]   the consumer's leases
-- KEYS[2]   the consumers
-- KEYS[3]   the delayed set
-- KEYS[4]   the entries of the delayed set
-- KEYS[5..] the lists: of priority 0 those of all queues, then of priority 1, …
-- ARGV[1]   the consumer
-- ARGV[2]   how many messages it wants at most, up to 1000; it gets fewer if they are long
-- ARGV[3]   the number for the first of them. If something is leased under it, the reply to an earlier claim was lost,
--           and is given again.
-- ARGV[4]   how many queues
-- ARGV[5]   prefix of the keys that count a message's crashes
-- ARGV[6]   the number of crashes after which a message is on trial: the next one is the last
-- ARGV[7..] numbers of leases that are acknowledged, up to 1000
--
-- Returns {the time, when the next delayed message is due (or ''), the number of consumers, 1 if the lists are drained,
-- then the entries}. If they are drained, a connection under CLIENT TRACKING is notified when that changes. The error
-- LEASELOST says that the consumer was taken for dead; an error of a list is returned only if the others were empty. A
-- delayed message that is due but whose list does not take it is tried again a second later. O(lists + messages), plus
-- up to 1000 messages that have to be moved to the list of their priority first, or put off; O(leases) if one of them is
-- on trial.
local leased, consumers, delayed, entries = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local wanted, number, queues = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

if #ARGV > 6 then
    redis.call('HDEL', leased, unpack(ARGV, 7))
end
if not redis.call('ZSCORE', consumers, ARGV[1]) then
    return redis.error_reply('LEASELOST the consumer was taken for dead')
end

-- Bytes, about, in one reply: a claim that takes longer than its consumer waits would be made again for ever.
local much, ripe = 16 * 1024 * 1024, 0

local now = time()
for _, member in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 500)) do
    local entry = redis.call('HGET', entries, member)
    -- Removed first: a server whose memory is full refuses a script that begins by adding.
    redis.call('ZREM', delayed, member)
    redis.call('HDEL', entries, member)
    if entry then
        local list, message = split(entry)
        -- It is due by the server's clock. The worker that gets it, maybe a stock one, is not to look at its own.
        message = string.gsub(message, '"eta":%s*("[^"]*")', '"eta": null, "backburner_eta": %1', 1)
        if not push('LPUSH', list, message) then
            redis.call('ZADD', delayed, string.format('%.6f', now + 1), member)
            redis.call('HSET', entries, member, entry)
        end
        ripe = ripe + #entry
        if ripe > much then
            break
        end
    end
end

local reply = {string.format('%.6f', now), '', redis.call('ZCARD', consumers), 0}
local head, alone, sorted, bytes, failure = #reply, false, 0, 0, nil

local function priority_of(message, likely)
    if string.find(message, '"priority": ' .. likely, -200, true) then
        return likely
    end
    local own = tonumber(string.match(message, '^.*"priority":%s*(%d+)'))
    return own and own <= 9 and own or likely
end

-- Workers die of one job, and others beside it are suspected as well. So that it does not take these along, a consumer
-- has one message on trial at a time: the next one has to wait, or goes elsewhere.
local function is_on_trial(message)
    return string.find(message, '"redelivered": true', 1, true)
        and tonumber(redis.call('GET', ARGV[5] .. delivery_tag(message)) or 0) >= tonumber(ARGV[6])
end

local trial
local function has_trial()
    if trial == nil then
        trial = false
        for _, entry in ipairs(redis.call('HVALS', leased)) do
            trial = trial or is_on_trial(entry)
        end
    end
    return trial
end

-- Producers put several priorities into one list, as stock kombu does. What is met there too early goes to a list of
-- its own. One that was delivered before travels alone, with all that its consumer has finished acknowledged: if it
-- kills the consumer, it is the oldest lease.
local function take_from(key, most)
    local list, priority = KEYS[key], math.floor((key - 5) / queues)
    local messages = redis.pcall('RPOP', list, most) or {}
    if messages.err then
        failure = messages
        return false
    end
    for i, message in ipairs(messages) do
        bytes = bytes + #message
        local own = priority_of(message, priority)
        local again = string.find(message, '"redelivered": true', 1, true)
        if own > priority and push('LPUSH', KEYS[key + (own - priority) * queues], message) then
            sorted = sorted + 1
        elseif alone or (again and #reply > head) then
            alone = true
            for j = #messages, i, -1 do
                redis.call('RPUSH', list, messages[j])
            end
            return false
        elseif again and is_on_trial(message) and has_trial() then
            delay(delayed, entries, list .. '\n' .. message, now + 1)
            sorted = sorted + 1
        else
            alone = again
            reply[#reply + 1] = list .. '\n' .. message
        end
    end
    return #messages == most
end

local function is_enough()
    return #reply - head >= wanted or bytes > much or sorted >= 1000 or alone
end

local lost = redis.call('HGET', leased, number)
if lost then
    repeat
        reply[#reply + 1] = lost
        bytes = bytes + #lost
        lost = bytes <= much and redis.call('HGET', leased, number + #reply - head)
    until not lost
    return reply
end

for first = 5, #KEYS, queues do
    local open = {}
    for key = first, first + queues - 1 do
        open[#open + 1] = key
    end
    while #open > 0 and not is_enough() do
        -- No more at a time than have been looked at: how long they are is not known before.
        local share, more = math.ceil((wanted - #reply + head) / #open), {}
        share = math.min(share, math.max(1, #reply - head + sorted))
        for _, key in ipairs(open) do
            if not is_enough() and take_from(key, math.min(share, wanted - #reply + head)) then
                more[#more + 1] = key
            end
        end
        open = more
    end
end

local leases = {}
for i = head + 1, #reply do
    leases[#leases + 1] = number + i - head - 1
    leases[#leases + 1] = reply[i]
end
if #leases > 0 then
    redis.call('HSET', leased, unpack(leases))
end

if failure and #leases == 0 then
    return failure
end

local next_due = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
reply[2] = next_due[2] or ''
if not is_enough() and not failure then
    -- Read, so that the server tells when they change. Before 7.2, Redis notes all KEYS each time that any key is read:
    -- with five hundred queues, reading all of them would take seconds.
    local last = redis.REDIS_VERSION_NUM < 0x00070200 and 5 or #KEYS
    for i = 5, last do
        redis.call('LLEN', KEYS[i])
    end
    reply[4] = 1
end
return reply
