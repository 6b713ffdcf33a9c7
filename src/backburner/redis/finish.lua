-- End computations: for each key whose lease is still held, store the result and give the lease back; then wake the
-- waiters. Whoever wrote or removed a key in the meantime has taken the lease away, and wins; its waiters are woken
-- all the same.
--
-- KEYS[1]  the list that waiters block on
-- KEYS[2]  the notes of flushes of everything that are under way
-- KEYS[3…] for each key its lease and its entry; then the channel
-- ARGV[1]  the token of the leases
-- ARGV[2]  when they were granted, in microseconds: nothing is stored if a flush began since
-- ARGV[3]  milliseconds that the list is kept for waiters that have yet to block on it
-- ARGV[4]  offset of `refresh_at` in an entry
-- ARGV[5…] for each key what to do with its entry, and two arguments for that:
--          'put'    the entry, and its lifetime in milliseconds; 0: for ever
--          'rest'   a new `refresh_at` for the entry that is there, packed; ''
--          'remove' '', ''
--          'leave'  '', ''
--
-- Returns for each key 1 if its lease was held and no flush has begun since, otherwise 0. O(length of the entries).
local result, waited_for = {}, false
local _, flushing = unpack(redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')) -- the last that began
local flushed = tonumber(flushing or -1) >= tonumber(ARGV[2])
for i = 3, #KEYS - 1, 2 do
  local lease, entry = KEYS[i], KEYS[i + 1]
  local verb, data, lifetime = unpack(ARGV, 5 + #result * 3, 7 + #result * 3)
  local holder = redis.call('GET', lease)
  local held = holder and string.sub(holder, 1, #ARGV[1]) == ARGV[1]
  if held then
    if flushed then
      redis.call('UNLINK', lease)
    elseif verb == 'put' then
      put(lease, entry, data, lifetime)
    elseif verb == 'rest' and redis.call('EXISTS', entry) == 1 then
      write(lease, 'SETRANGE', entry, ARGV[4], data)
    elseif verb == 'remove' then
      write(lease, 'UNLINK', entry)
    else
      redis.call('UNLINK', lease)
    end
  end
  waited_for = waited_for or not held or string.sub(holder, -1) == '+'
  result[#result + 1] = held and not flushed and 1 or 0
end
if waited_for then
  redis.call('RPUSH', KEYS[1], 1)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return result
