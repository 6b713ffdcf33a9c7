-- Take the versions of tags away.
-- KEYS     the tags' keys; then the channel
-- O(number of tags), however many entries carry them
for i = 1, #KEYS - 1 do
  redis.call('UNLINK', KEYS[i])
  tell(KEYS[i])
end
