-- Asks for one URL, or for so many (first argument) at random, and tells what came of it as JSON; times in microseconds.

function init(arguments)
  local urls = tonumber(arguments[1])
  if urls > 1 then
    local path = wrk.path
    function request()
      return wrk.format(nil, path .. math.random(urls))
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "duration": %d, "p99": %d, "failed": %d}\n',
    summary.requests, summary.duration, latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.timeout + errors.status
  ))
end
