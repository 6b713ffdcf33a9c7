-- Add to the whole number in an entry, or begin one. Exact over all 64 bits: INCRBY does the sum, not Lua's doubles.
--
-- KEYS[1]  the lease on computing it
-- KEYS[2]  the entry
-- KEYS[3]  the channel
-- ARGV[1]  the amount, which may be negative
-- ARGV[2]  the time in Unix seconds
-- ARGV[3]  header for a new entry, used if there is none yet, or only a stale one
-- ARGV[4]  lifetime of a new entry in milliseconds; 0: for ever
-- ARGV[5]  '1' if the caller has checked that the entry's tags are still valid
--
-- Returns {'ok', sum}; {'tagged'}: ask again once the tags are checked; {'overflow'}; or {'type'}: not a whole number,
-- or not an entry of this key. O(1).
local lease, entry = KEYS[1], KEYS[2]
local data = redis.call('GET', entry)
if data and (#data < 44 or string.sub(data, 1, 2) ~= string.sub(ARGV[3], 1, 2)) then return {'type'} end

if data and struct.unpack('>d', data, 21) > tonumber(ARGV[2]) then
  local offset = struct.unpack('>I2', data, 3)
  if offset > 44 and ARGV[5] ~= '1' then return {'tagged'} end
  local digits = string.match(data, '^J(%-?%d+)\n$', offset + 1)
  if not digits or string.sub(data, 41, 44) ~= string.sub(ARGV[3], 41, 44) then return {'type'} end
  redis.call('SET', entry, digits, 'KEEPTTL')
  local sum = redis.pcall('INCRBY', entry, ARGV[1])
  if type(sum) == 'table' then
    redis.call('SET', entry, data, 'KEEPTTL')
    return {'overflow'}
  end
  digits = redis.call('GET', entry)
  write(lease, 'SET', entry, string.sub(data, 1, offset) .. 'J' .. digits .. '\n', 'KEEPTTL')
  return {'ok', digits}
end

put(lease, entry, ARGV[3] .. 'J' .. ARGV[1] .. '\n', ARGV[4])
return {'ok', ARGV[1]}
