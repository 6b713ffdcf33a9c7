-- Put messages back to where stock consumers look, in front and in their order, if no consumer of ours is left.
--
-- KEYS[1]   the consumers
-- KEYS[2..] pairs of lists: the first is one that only ours look at, the second the one for its messages
-- ARGV[1]   how many at most
--
-- Returns how many. O(messages).
local moved, most = 0, tonumber(ARGV[1])
if redis.call('ZCOUNT', KEYS[1], time(), '+inf') > 0 then
    return 0
end
for i = 2, #KEYS, 2 do
    -- The newest first, so that the oldest ends up in front.
    while moved < most and redis.call('LMOVE', KEYS[i], KEYS[i + 1], 'LEFT', 'RIGHT') do
        moved = moved + 1
    end
end
return moved
