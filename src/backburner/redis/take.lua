-- Read and remove an entry.
--
-- KEYS[1]  the lease on computing it
-- KEYS[2]  the entry
-- KEYS[3]  the channel
--
-- Returns its bytes, or nothing. O(length of the entry).
local found = redis.call('GET', KEYS[2])
write(KEYS[1], 'UNLINK', KEYS[2])
return found
