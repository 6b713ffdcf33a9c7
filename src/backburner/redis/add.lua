-- Write an entry if there is none.
--
-- KEYS[1]  the lease on computing it
-- KEYS[2]  the entry
-- KEYS[3]  the channel
-- ARGV[1]  the bytes to write
-- ARGV[2]  the entry's lifetime in milliseconds; 0: for ever
--
-- Returns nothing if the entry was written, otherwise the bytes that are there. O(length of the entry).
local found = redis.call('GET', KEYS[2])
if found then return found end
put(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
