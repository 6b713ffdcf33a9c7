-- Take the versions of tags away, and note when, for those who compute now and name their tags only when they have done.
-- KEYS     for each tag its version, and where to note; then the channel
-- ARGV[1]  milliseconds that this is noted
-- O(number of tags), however many entries carry them
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
for i = 1, #KEYS - 1, 2 do
  redis.call('UNLINK', KEYS[i])
  redis.call('SET', KEYS[i + 1], now, 'PX', ARGV[1])
  tell(KEYS[i])
end
