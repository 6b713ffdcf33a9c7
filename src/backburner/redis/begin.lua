-- Begin computing values: take the leases on their keys, so that no other process computes them too, and read the
-- versions of their tags. A tag without a version is given a new one, kept at least as long as the entries: a flush
-- removes the version, so that values computed before it can be told from those computed after. A key whose entry is
-- not the one that the caller has seen gets no lease: somebody else has just computed it.
--
-- KEYS     the tags' keys; then, for each key to compute, its lease and its entry
-- ARGV[1]  the token of the leases
-- ARGV[2]  duration of a lease in milliseconds
-- ARGV[3]  milliseconds that the versions must live at least; 0: for ever
-- ARGV[4]  the number of tags
-- ARGV[5…] a random version for each tag, used if it has none; then, for each key, the mark of the entry that the
--          caller has seen: the 8 bytes of its time of creation, '' if there was none, '*' for any
--
-- Returns for each key 1 (granted), 0 (another entry is there) or {token of the holder, milliseconds left of its
-- lease}; then, unless no lease was granted, the versions of the tags and, if there are keys, the time in
-- microseconds. O(tags + keys).
local tags = tonumber(ARGV[4])
local result, granted = {}, tags == #KEYS

local function is_another(entry, seen)
  if seen == '*' then return false end
  if seen == '' then return redis.call('EXISTS', entry) == 1 end
  return redis.call('GETRANGE', entry, 4, 11) ~= seen
end

for i = tags + 1, #KEYS, 2 do
  local lease, seen = KEYS[i], ARGV[4 + tags + #result + 1]
  local answer
  if is_another(KEYS[i + 1], seen) then
    answer = 0
  elseif redis.call('SET', lease, ARGV[1], 'NX', 'PX', ARGV[2]) then
    answer = 1
    granted = true
  else
    local holder = redis.call('GET', lease)
    if string.sub(holder, -1) ~= '+' then
      redis.call('APPEND', lease, '+') -- tells the holder that somebody waits; keeps the lease's end
    else
      holder = string.sub(holder, 1, -2)
    end
    answer = {holder, redis.call('PTTL', lease)}
  end
  result[#result + 1] = answer
end
if not granted then
  return result
end

for i = 1, tags do
  local version = redis.call('GET', KEYS[i])
  if not version then
    version = ARGV[4 + i]
    if ARGV[3] == '0' then
      redis.call('SET', KEYS[i], version)
    else
      redis.call('SET', KEYS[i], version, 'PX', ARGV[3])
    end
  else
    local left = redis.call('PTTL', KEYS[i])
    if left >= 0 then
      if ARGV[3] == '0' then
        redis.call('PERSIST', KEYS[i])
      elseif left < tonumber(ARGV[3]) then
        redis.call('PEXPIRE', KEYS[i], ARGV[3])
      end
    end
  end
  result[#result + 1] = version
end
if tags < #KEYS then
  local time = redis.call('TIME')
  result[#result + 1] = time[1] * 1000000 + time[2]
end
return result
