-- Say that anything may have changed.
-- KEYS[1]  the channel
-- O(number of listeners)
tell('')
