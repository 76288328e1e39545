-- Shared by all scripts of limits: the server's clock in us, which a Lua number holds exactly until 2255.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

-- What the script answers when reading a key failed: a status for another type, else the error as it
-- came, for example that the ACL user may not read.
local function refusal(failed)
  return string.find(failed.err, '^WRONGTYPE') and {'WRONGTYPE'} or failed
end
