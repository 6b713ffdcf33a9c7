-- Read the versions of tags before a value is computed, giving each tag without one a new version, and see to it that
-- they outlive the entry. A flush removes the version, so what was computed before it can be told from what came after.
-- KEYS     the tags' keys
-- ARGV[1]  milliseconds the versions must live at least; 0: for ever
-- ARGV[2…] a random version for each tag, used where there is none
-- Result   the versions, in the order of KEYS
-- O(number of tags)
local versions = {}
for i, key in ipairs(KEYS) do
  local version = redis.call('GET', key)
  if not version then
    version = ARGV[i + 1]
    if ARGV[1] == '0' then
      redis.call('SET', key, version)
    else
      redis.call('SET', key, version, 'PX', ARGV[1])
    end
  else
    local left = redis.call('PTTL', key)
    if left >= 0 then
      if ARGV[1] == '0' then
        redis.call('PERSIST', key)
      elseif left < tonumber(ARGV[1]) then
        redis.call('PEXPIRE', key, ARGV[1])
      end
    end
  end
  versions[i] = version
end
return versions
