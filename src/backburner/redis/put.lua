-- Write entries, whatever is there.
--
-- KEYS     for each entry the lease on computing it, and the entry; then the channel
-- ARGV     for each its bytes, and its lifetime in milliseconds; 0: for ever
--
-- Returns nothing. O(length of the entries).
for i = 1, #KEYS - 1, 2 do
  put(KEYS[i], KEYS[i + 1], ARGV[i], ARGV[i + 1])
end
