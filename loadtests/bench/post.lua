-- One POST again and again, each with a fresh random x-user-id. Arguments after wrk's own "--":
-- the file with the body, its content type, and the length of its JSON header or "-".
init = function(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method = "POST"
  wrk.body = file:read("*a")
  file:close()
  wrk.headers["Content-Type"] = args[2]
  if args[3] ~= "-" then
    wrk.headers["Inference-Header-Content-Length"] = args[3]
  end
  math.randomseed(os.time())
end

request = function()
  wrk.headers["x-user-id"] = string.format("%08x%08x", math.random(0, 2^31), math.random(0, 2^31))
  return wrk.format()
end
