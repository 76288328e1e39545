-- Shared by the scripts of the lock. KEYS: 1 the lock (hash: owner, fence, wake, meta; its TTL is
-- the lease), 2 the fence counter of the bucket, 3 the queue (sorted set: owner by arrival),
-- 4 the waiters (hash: owner to {deadline ms, claim ms, wake channel, metadata}, packed).

-- Server time in microseconds, read once a script.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

-- Whether a key of ours holds a foreign type. Asked before the first write: a script that fails
-- half way is not rolled back.
local function foreign()
  local types = {'hash', 'string', 'zset', 'hash'}
  for index, expected in ipairs(types) do
    local found = redis.call('TYPE', KEYS[index])['ok']
    if found ~= 'none' and found ~= expected then return true end
  end
  local last = tonumber(redis.call('GET', KEYS[2]) or '0')
  return not last or last >= 9007199254740991
end

-- The next fence: above the last one, and not below the clock, so that fences go on rising when
-- the counter is lost. Both fit 2^53 until the year 2255.
local function next_fence()
  return string.format('%.0f', math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, now))
end

-- Makes `owner` the holder.
local function grant(owner, fence, lease, wake, meta)
  redis.call('SET', KEYS[2], fence)
  redis.call('HSET', KEYS[1], 'owner', owner, 'fence', fence, 'wake', wake, 'meta', meta)
  redis.call('PEXPIRE', KEYS[1], lease)
  return fence
end

-- Grants the lock to the first waiter that lives and listens, for its claim time; `mine` is the
-- caller's own place in the queue, which needs no message. Answers who got it, and the fence.
local function hand_over(mine)
  while true do
    local owner = redis.call('ZPOPMIN', KEYS[3])[1]
    if not owner then return nil end
    local packed = redis.call('HGET', KEYS[4], owner)
    redis.call('HDEL', KEYS[4], owner)
    if packed then
      local waiter = cmsgpack.unpack(packed)
      local fence = next_fence()
      local message = 'grant ' .. owner .. ' ' .. fence
      if owner == mine
        or (waiter[1] * 1000 > now and redis.call('SPUBLISH', waiter[3], message) > 0) then
        return owner, grant(owner, fence, waiter[2], waiter[3], waiter[4])
      end
    end
  end
end
