-- How the scripts behind this one write an entry. Every write takes away the lease on computing its key: what is being
-- computed has begun before it, and must not overwrite it.
local function write(lease, command, entry, ...)
  redis.call('UNLINK', lease)
  return redis.call(command, entry, ...)
end

local function put(lease, entry, data, milliseconds) -- 0: for ever
  if milliseconds == '0' then
    write(lease, 'SET', entry, data)
  else
    write(lease, 'SET', entry, data, 'PX', milliseconds)
  end
end

