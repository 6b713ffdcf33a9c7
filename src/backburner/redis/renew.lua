-- Prolong leases that are still held.
--
-- KEYS     the leases
-- ARGV[1]  milliseconds that they last from now on
-- ARGV[2…] for each its token
--
-- Returns for each 1 if it was still held, otherwise 0. O(leases).
local result = {}
for i, lease in ipairs(KEYS) do
  local holder, token = redis.call('GET', lease), ARGV[i + 1]
  local held = holder and string.sub(holder, 1, #token) == token
  if held then
    redis.call('PEXPIRE', lease, ARGV[1])
  end
  result[i] = held and 1 or 0
end
return result
