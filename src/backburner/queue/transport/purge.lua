-- Remove from the delayed set what belongs to some lists: a part of it at each call.
--
-- KEYS[1]   the delayed set
-- KEYS[2]   its entries
-- KEYS[3..] the lists
-- ARGV[1]   where to go on: '0', then what was returned
-- ARGV[2]   how many to look at, about
--
-- Returns where to go on ('0' at the end), and how many were removed. O(looked at, and log delayed for each removed).
local lists, removed = {}, 0
for i = 3, #KEYS do
    lists[KEYS[i]] = true
end
local found = redis.call('HSCAN', KEYS[2], ARGV[1], 'COUNT', ARGV[2])
for i = 1, #found[2], 2 do
    local list = split(found[2][i + 1])
    if lists[list] then
        redis.call('ZREM', KEYS[1], found[2][i])
        removed = removed + redis.call('HDEL', KEYS[2], found[2][i])
    end
end
return {found[1], removed}
