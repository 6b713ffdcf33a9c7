-- Remove entries.
--
-- KEYS     for each entry the lease on computing it, and the entry; then the channel
--
-- Returns how many there were. O(entries).
local count = 0
for i = 1, #KEYS - 1, 2 do
  count = count + write(KEYS[i], 'UNLINK', KEYS[i + 1])
end
return count
