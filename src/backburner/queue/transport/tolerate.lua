-- Postpone a leased message whose task this worker does not know, by as long as it has been unknown; not if that is too
-- long already.
--
-- KEYS[1] the consumer's leases
-- KEYS[2] the delayed set
-- KEYS[3] its entries
-- KEYS[4] since when this message's task is unknown
-- ARGV[1] number of the lease
-- ARGV[2] seconds that a task may be unknown
-- ARGV[3] seconds to put it off at least
-- ARGV[4] at most
--
-- Returns 1 if it was put off, 0 if it was unknown for too long, or is no longer leased. O(log delayed).
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry then
    return 0
end
local now = time()
local since = redis.call('GET', KEYS[4])
local age = now - (since or now)
if age >= tonumber(ARGV[2]) then
    return 0
end
-- Removed first: a server whose memory is full refuses a script that begins by adding.
redis.call('HDEL', KEYS[1], ARGV[1])
if not since then
    redis.call('SET', KEYS[4], string.format('%.6f', now), 'EX', math.ceil(ARGV[2] * 2 + 1))
end
delay(KEYS[2], KEYS[3], entry, now + math.min(math.max(age, tonumber(ARGV[3])), tonumber(ARGV[4])))
return 1
