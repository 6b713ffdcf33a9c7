-- Shared by the scripts that look at the state of a job; stands before their text.
--
-- A result is JSON that begins with the state, as Celery writes it. It is not decoded: a result that cjson refuses,
-- such as one with half of a surrogate pair in a message, has a state too.
local function state(json)
    return string.match(json, '^{"status":%s*"(%u+)"')
end

local function state_at(key)
    return state(redis.call('GETRANGE', key, 0, 40))
end

