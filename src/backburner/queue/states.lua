-- What several scripts ask about the state of a job. Stands before their text.
--
-- A result is JSON that begins with the state, as Celery writes it. Not decoded: what cjson refuses, such as half a
-- character in a message, has a state too.
local function state(json)
    return string.match(json, '^{"status":%s*"(%u+)"')
end

local function state_at(key)
    return state(redis.call('GETRANGE', key, 0, 40))
end

