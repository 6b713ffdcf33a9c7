-- Remove the versions of tags, and note when: a computation that began earlier may name a tag only once it has
-- finished.
--
-- KEYS     for each tag the key of its version, and that of the note; then the channel
-- ARGV[1]  milliseconds that the note is kept
--
-- Returns nothing. O(tags), however many entries carry them.
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
for i = 1, #KEYS - 1, 2 do
  redis.call('UNLINK', KEYS[i])
  redis.call('SET', KEYS[i + 1], now, 'PX', ARGV[1])
  tell(KEYS[i])
end
