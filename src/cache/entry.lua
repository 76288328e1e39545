-- KEYS are, in each script that includes this: the value, then its load lease (a hash: token,
-- fence, takeover, and a field `w:<channel>` for each process that waits; or, in the place of a
-- lease, what a failed load has left: fence, and failed, its record).

-- Whether a key holds a type that the cache does not write.
local function foreign()
  local value, lease = redis.call('TYPE', KEYS[1]).ok, redis.call('TYPE', KEYS[2]).ok
  return (value ~= 'none' and value ~= 'string') or (lease ~= 'none' and lease ~= 'hash')
end

-- Stores an entry for `ttl` ms and writes that deadline, in server time, into bytes 8 to 19
-- (counted from 0): fresh until, stale until.
local function store(entry, ttl)
  local now = redis.call('TIME')
  local ends = struct.pack('>I6', now[1] * 1000 + math.floor(now[2] / 1000) + ttl)
  local stamped = string.sub(entry, 1, 8) .. ends .. ends .. string.sub(entry, 21)
  redis.call('SET', KEYS[1], stamped, 'PX', ttl)
end

-- Ends the lease and tells the processes that wait for it: '+' and the value's key when a value
-- was stored, '-' when they had better try themselves. Who does not hear it has a timer.
local function finish(mark)
  local fields = redis.call('HKEYS', KEYS[2])
  redis.call('DEL', KEYS[2])
  for _, field in ipairs(fields) do
    if string.sub(field, 1, 2) == 'w:' then
      redis.pcall('SPUBLISH', string.sub(field, 3), mark .. KEYS[1])
    end
  end
end

