-- Begin to compute a value: take the lease on its key, so that no other process computes it too, and read the versions of
-- its tags, giving each tag without one a new version, kept for at least as long as the entry. A flush removes the
-- version, so what is computed before it can be told from what comes after.
-- KEYS     the tags' keys; then the lease's key, if a lease is wanted
-- ARGV[1]  the token of the lease; empty: no lease is wanted
-- ARGV[2]  milliseconds that the lease lasts
-- ARGV[3]  milliseconds that the versions must live at least; 0: for ever
-- ARGV[4…] a random version for each tag, used where there is none
-- Result   {1, the versions in the order of KEYS}, or {0, token of the holder, milliseconds that its lease still lasts}
-- O(number of tags)
local tags = #KEYS
if ARGV[1] ~= '' then
  tags = tags - 1
  local lease = KEYS[#KEYS]
  if not redis.call('SET', lease, ARGV[1], 'NX', 'PX', ARGV[2]) then
    local holder = redis.call('GET', lease)
    if string.sub(holder, -1) ~= '+' then
      redis.call('APPEND', lease, '+') -- tells the holder that somebody waits; keeps the lease's end
    else
      holder = string.sub(holder, 1, -2)
    end
    return {0, holder, redis.call('PTTL', lease)}
  end
end

local result = {1}
for i = 1, tags do
  local version = redis.call('GET', KEYS[i])
  if not version then
    version = ARGV[i + 3]
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
  result[i + 1] = version
end
return result
