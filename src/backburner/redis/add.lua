-- Write an entry where there is nothing.
-- KEYS[1]  the lease on computing it
-- KEYS[2]  the entry
-- KEYS[3]  the channel
-- ARGV[1]  its bytes
-- ARGV[2]  milliseconds it lives; 0: for ever
-- Result   nothing if it was written, else the bytes that are there
-- O(length of the entry)
local found = redis.call('GET', KEYS[2])
if found then return found end
put(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
