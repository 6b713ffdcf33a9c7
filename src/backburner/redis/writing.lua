-- Shared by the scripts that write entries; stands before their text. Every write of an entry takes away the lease on
-- computing its key: what is being computed began earlier and must not overwrite the new entry. The write is also
-- announced on a channel, for caches to which the server itself does not announce changes (no client tracking). While
-- any of them listens, a key with the channel's name exists: the last of KEYS.
local channel = KEYS[#KEYS]
local listened_to = redis.call('EXISTS', channel) == 1

local function tell(name) -- empty: all names
  if listened_to then redis.call('PUBLISH', channel, name) end
end

local function write(lease, command, entry, ...)
  redis.call('UNLINK', lease)
  local result = redis.call(command, entry, ...)
  tell(entry)
  return result
end

local function put(lease, entry, data, milliseconds) -- 0: for ever
  if milliseconds == '0' then
    write(lease, 'SET', entry, data)
  else
    write(lease, 'SET', entry, data, 'PX', milliseconds)
  end
end

