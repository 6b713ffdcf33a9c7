-- Put messages of one task into one list, and record that their jobs exist. Does so once, even if the caller has to
-- repeat the call because its reply was lost.
--
-- KEYS[1]    the list
-- KEYS[2]    the consumers that lease messages
-- KEYS[3]    the delayed set
-- KEYS[4]    its entries
-- KEYS[5..]  for each message its job's record, a string of lines: enqueued (ms since 1970, or, if negative, seconds
--            before the record expires), name of the task (with a tab and 'ignored' if its result is), token of the
--            last delivery, the queues it went to; then the lists that expire unless used (queues with x-expires)
-- ARGV[1]    the token of this delivery: nothing is delivered to the same queue twice with the same token
-- ARGV[2]    seconds to keep the records
-- ARGV[3]    name of the task, as it is in the record
-- ARGV[4]    name of the queue
-- ARGV[5]    when the messages are due, in seconds since 1970; '' for now
-- ARGV[6]    the caller's time when it computed that, if they are due later. If its clock is off by more than a second,
--            the due time is corrected by the difference.
-- ARGV[7]    the channel for announcements
-- ARGV[8]    milliseconds after which the expiring lists expire; read only if there are any
-- ARGV[9]    how many messages
-- ARGV[10..] the messages, then the announcements
--
-- Messages that are not due yet wait in the delayed set if a consumer of ours is there to look after it; stock workers
-- hold them in memory until then. Members of the delayed set are named as by `member_in` of transport/entries.lua.
--
-- Returns how many subscribers heard the announcement, -1 if the delivery had already been made, or why nothing may be
-- announced (the jobs are enqueued all the same). O(messages), and O(log delayed) for each delayed message.
local list, token, task, queue = KEYS[1], ARGV[1], ARGV[3], ARGV[4]
local due, channel, count = tonumber(ARGV[5]), ARGV[7], tonumber(ARGV[9])

local time = redis.call('TIME')
local enqueued = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local record = enqueued .. '\n' .. task .. '\n' .. token .. '\n' .. queue
local first = 5
if redis.call('SET', KEYS[5], record, 'EX', ARGV[2], 'NX') then
    first = 6
else
    -- The job was enqueued before: into another queue, as a retry of the task, or by this very delivery.
    local known, queues = redis.call('GET', KEYS[5]), queue
    local before, last, delivered = string.match(known, '^(-?%d+)\n[^\n]*\n([^\n]*)\n(.*)$')
    if last == token then
        if string.find('\n' .. delivered .. '\n', '\n' .. queue .. '\n', 1, true) then
            -- This must be a write: a WAIT that follows is about the last write of its connection.
            redis.call('EXPIRE', KEYS[5], ARGV[2])
            return -1
        end
        queues = delivered .. '\n' .. queue
    end
    if before and tonumber(before) < 0 then
        before = string.format('%d', redis.call('PEXPIRETIME', KEYS[5]) + 1000 * before)
    end
    record = (before or enqueued) .. '\n' .. task .. '\n' .. token .. '\n' .. queues
end
for i = first, 4 + count do
    redis.call('SET', KEYS[i], record, 'EX', ARGV[2])
end

local now = time[1] + time[2] / 1000000
if due and math.abs(now - ARGV[6]) > 1 then
    due = due + now - ARGV[6]
end
if due and due > now and redis.call('ZCOUNT', KEYS[2], now, '+inf') > 0 then
    for i = 1, count do
        local member = string.match(KEYS[4 + i], 'backburner:job:(.*)')
        if redis.call('ZSCORE', KEYS[3], member) then
            member = token .. '\n' .. list .. '\n' .. member
        end
        redis.call('ZADD', KEYS[3], string.format('%.6f', due), member)
        redis.call('HSET', KEYS[4], member, list .. '\n' .. ARGV[9 + i])
    end
else
    redis.call('LPUSH', list, unpack(ARGV, 10, 9 + count))
end

local heard = 0
for i = 10 + count, #ARGV do
    local answer = redis.pcall('PUBLISH', channel, ARGV[i])
    heard = type(answer) == 'table' and answer.err or answer
end
for i = 5 + count, #KEYS do
    redis.call('PEXPIRE', KEYS[i], ARGV[8])
end
return heard
