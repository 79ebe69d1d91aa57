-- POSTs one body again and again, with a key that goes round a number of users. Prints one line of
-- JSON at the end. Arguments after wrk's own "--": the file with the body, its content type, the
-- length of its JSON header or "-", the header that holds the key, and the number of users.
local requests, turn = {}, 0

init = function(args)
  local file = assert(io.open(args[1], "rb"))
  local body = file:read("*a")
  file:close()
  wrk.method = "POST"
  wrk.headers["Content-Type"] = args[2]
  if args[3] ~= "-" then
    wrk.headers["Inference-Header-Content-Length"] = args[3]
  end
  math.randomseed(os.time())
  for user = 1, tonumber(args[5]) do
    wrk.headers[args[4]] = string.format("%08x%08x", math.random(0, 2^31), math.random(0, 2^31))
    requests[user] = wrk.format(nil, nil, nil, body)
  end
end

request = function()
  turn = turn % #requests + 1
  return requests[turn]
end

done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "errors": ' ..
    '{"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
