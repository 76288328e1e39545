-- KEYS are, in each script that includes this: the value, then its load lease. The lease is a hash:
-- token, fence, takeover, and a field `w:<channel>` for each process that waits. After a failed
-- load, the hash holds instead what the load has left: fence, and failed, its record.

-- Whether a key holds a type that the cache does not write.
local function foreign()
  local value, lease = redis.call('TYPE', KEYS[1]).ok, redis.call('TYPE', KEYS[2]).ok
  return (value ~= 'none' and value ~= 'string') or (lease ~= 'none' and lease ~= 'hash')
end

-- The time of the server, in ms.
local function server_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- The bytes 8 to 19 (counted from 0) of an entry that is fresh for `ttl` ms from now, and may be
-- served stale for `window` ms more: fresh until, stale until, in server time.
local function deadlines(ttl, window)
  local fresh = server_ms() + ttl
  return struct.pack('>I6', fresh) .. struct.pack('>I6', fresh + window)
end

-- Whether the entry is the one that begins with these 36 bytes, whatever its deadlines are. '' stands for none.
local function still(head)
  local found = redis.call('GETRANGE', KEYS[1], 0, 35)
  return string.sub(found, 1, 8) == string.sub(head, 1, 8) and string.sub(found, 21) == string.sub(head, 21)
end

-- Stores an entry with its deadlines. A bare value has none, and '' in the place of a window.
local function store(entry, ttl, window)
  if window ~= '' then
    entry = string.sub(entry, 1, 8) .. deadlines(ttl, window) .. string.sub(entry, 21)
    ttl = ttl + window
  end
  redis.call('SET', KEYS[1], entry, 'PX', string.format('%.0f', ttl))
end

-- Ends the lease and wakes the processes that wait for it: '+' and the value's key if a value was
-- stored, '-' if they must ask for the lease themselves. A process that misses this has a timer.
local function finish(mark)
  local fields = redis.call('HKEYS', KEYS[2])
  redis.call('DEL', KEYS[2])
  for _, field in ipairs(fields) do
    if string.sub(field, 1, 2) == 'w:' then
      redis.pcall('SPUBLISH', string.sub(field, 3), mark .. KEYS[1])
    end
  end
end

