-- Add to the whole number in an entry, or begin one. Exact over all 64 bits: INCRBY does the sum, not Lua's doubles.
-- KEYS[1]  the entry
-- ARGV[1]  the amount, may be negative
-- ARGV[2]  the time, Unix seconds
-- ARGV[3]  header of a new entry, put before the number if there is none yet (or only a stale or unreadable one)
-- ARGV[4]  milliseconds a new entry lives; 0: for ever
-- ARGV[5]  '1': the caller has seen that the entry's tags are still valid
-- Result   {'ok', number} | {'tagged'}: ask again once the tags are checked | {'type'}: not a whole number | {'overflow'}
-- O(1)
local data = redis.call('GET', KEYS[1])
local alive = false
local offset
if data and #data >= 40 and string.byte(data, 1) == 0xBB and string.byte(data, 2) == 1 then
  local fresh_until
  offset, fresh_until = struct.unpack('>I2', data, 3), struct.unpack('>d', data, 21)
  alive = fresh_until > tonumber(ARGV[2])
end

if alive then
  if offset > 40 and ARGV[5] ~= '1' then return {'tagged'} end
  local digits = string.match(data, '^J(%-?%d+)$', offset + 1)
  if not digits then return {'type'} end
  redis.call('SET', KEYS[1], digits, 'KEEPTTL')
  local sum = redis.pcall('INCRBY', KEYS[1], ARGV[1])
  if type(sum) == 'table' then
    redis.call('SET', KEYS[1], data, 'KEEPTTL')
    return {'overflow'}
  end
  digits = redis.call('GET', KEYS[1])
  redis.call('SET', KEYS[1], string.sub(data, 1, offset) .. 'J' .. digits, 'KEEPTTL')
  return {'ok', digits}
end

local entry = ARGV[3] .. 'J' .. ARGV[1]
if ARGV[4] == '0' then
  redis.call('SET', KEYS[1], entry)
else
  redis.call('SET', KEYS[1], entry, 'PX', ARGV[4])
end
return {'ok', ARGV[1]}
