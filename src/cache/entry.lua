-- KEYS are, in each script of one entry that includes this: the value, then its load lease. The
-- lease is a hash: token, fence, takeover, and a field `w:<channel>` for each process that waits.
-- After a failed load, the hash holds instead what the load has left: fence, and failed, its record.

-- Whether KEYS[at] holds another type than `own`.
local function other(at, own)
  local found = redis.call('TYPE', KEYS[at]).ok
  return found ~= 'none' and found ~= own
end

-- Whether a key holds a type that the cache does not write.
local function foreign()
  return other(1, 'string') or other(2, 'hash')
end

-- The time of the server, in ms.
local function server_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- The bytes 8 to 19 (counted from 0) of an entry that is fresh until this moment of the server, and
-- may be served stale for `window` ms more.
local function deadlines(fresh, window)
  return struct.pack('>I6I6', fresh, fresh + window)
end

-- Whether the entry is the one that begins with these 36 bytes, whatever its deadlines are. '' stands for none.
local function still(head)
  local found = redis.call('GETRANGE', KEYS[1], 0, 35)
  return string.sub(found, 1, 8) == string.sub(head, 1, 8) and string.sub(found, 21) == string.sub(head, 21)
end

-- Stores an entry with its deadlines. A bare value has none, and '' in the place of a window.
local function store(entry, ttl, window)
  if window ~= '' then
    entry = string.sub(entry, 1, 8) .. deadlines(server_ms() + ttl, window) .. string.sub(entry, 21)
    ttl = ttl + window
  end
  redis.call('SET', KEYS[1], entry, 'PX', string.format('%.0f', ttl))
end

-- Wakes the processes that wait for a load, by the `fields` of its lease: '+' and the value's key if
-- a value was stored, '-' if they must ask for the lease themselves. A process that misses this has a
-- timer.
local function wake(fields, mark, value)
  for _, field in ipairs(fields) do
    if string.sub(field, 1, 2) == 'w:' then
      redis.pcall('SPUBLISH', string.sub(field, 3), mark .. KEYS[value])
    end
  end
end

-- Ends the lease and wakes the processes that wait for it. The positions of both keys are 1 and 2,
-- unless a script names others.
local function finish(mark, value, lease)
  value, lease = value or 1, lease or 2
  local fields = redis.call('HKEYS', KEYS[lease])
  redis.call('DEL', KEYS[lease])
  wake(fields, mark, value)
end
