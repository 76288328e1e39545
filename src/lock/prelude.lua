-- Shared by the scripts of the lock. KEYS: 1 the lock ('owner fence process metadata'; its TTL is
-- the lease), 2 the fence counter of the bucket, 3 the queue (sorted set: owner by arrival),
-- 4 the waiters (hash: owner to {deadline ms, claim ms, process, metadata, to be told}, packed).
-- ARGV[1] is the prefix of the bucket's wake channels; a process id completes it.
local FOREIGN = {'WRONGTYPE'}

-- What the script answers when reading a key failed: that something else is in its place, or the
-- error as it came, for example that the ACL user may not read.
local function refusal(failed)
  return (type(failed) ~= 'table' or string.find(failed.err, '^WRONGTYPE')) and FOREIGN or failed
end

-- Server time in microseconds, read once a script.
local now_us
local function now()
  if not now_us then
    local time = redis.call('TIME')
    now_us = time[1] * 1000000 + time[2]
  end
  return now_us
end

-- Reads the lock: owner, fence, process, metadata; nothing if it is free; a table, which is what
-- the script answers, if it cannot be read or something else is in its place.
local function holder()
  local value = redis.pcall('GET', KEYS[1])
  if not value then return nil end
  if type(value) ~= 'string' then return refusal(value) end
  local owner, fence, process, meta = string.match(value, '^(%x+) (%d+) (%x+) (.*)$')
  if not owner then return FOREIGN end
  return owner, fence, process, meta
end

-- Whether something else is in the place of the counter, the queue or the waiters. Asked before
-- the first write where the queue is used: a script that fails half way is not rolled back.
local function foreign()
  local types = {'string', 'zset', 'hash'}
  for index, expected in ipairs(types) do
    local found = redis.call('TYPE', KEYS[index + 1])['ok']
    if found ~= 'none' and found ~= expected then return true end
  end
  local last = tonumber(redis.call('GET', KEYS[2]) or '0')
  return not last or last >= 9007199254740991
end

-- Counts a grant: the fence is above the last one, and not below the clock, so that fences go on
-- rising when the counter is lost. Both fit 2^53 until the year 2255. Nothing is written, and
-- nothing returned, if the counter holds something else.
local function next_fence()
  local fence = string.format('%.0f', now())
  local last = redis.pcall('SET', KEYS[2], fence, 'GET')
  if not last then return fence end
  local number = type(last) == 'string' and string.find(last, '^%d+$') and tonumber(last)
  if number and number < now() then return fence end
  if number and number < 9007199254740991 then
    fence = string.format('%.0f', number + 1)
    redis.call('SET', KEYS[2], fence)
    return fence
  end
  if type(last) == 'string' then redis.call('SET', KEYS[2], last) end
  return nil
end

-- Makes `owner` the holder.
local function grant(owner, fence, lease, process, meta)
  redis.call('SET', KEYS[1], owner .. ' ' .. fence .. ' ' .. process .. ' ' .. meta, 'PX', lease)
end

-- Tells a process; says whether it listens. A user who may not publish reaches nobody.
local function heard(process, message)
  local listeners = redis.pcall('SPUBLISH', ARGV[1] .. process, message)
  return type(listeners) == 'number' and listeners > 0
end

-- Grants the lock to the first waiter that lives and listens, or asks, for its claim time; `mine` is
-- the caller's own place in the queue, which needs no message. Answers who got it, and the fence.
local function hand_over(mine)
  while true do
    local owner = redis.call('ZPOPMIN', KEYS[3])[1]
    if not owner then return nil end
    local packed = redis.call('HGET', KEYS[4], owner)
    redis.call('HDEL', KEYS[4], owner)
    if packed then
      local waiter = cmsgpack.unpack(packed)
      local fence = waiter[1] * 1000 > now() and next_fence()
      if fence and (owner == mine or heard(waiter[3], 'there') or waiter[5] == '0') then
        grant(owner, fence, waiter[2], waiter[3], waiter[4])
        -- Only what is granted is told: a replica passes on what nobody has heard here.
        if owner ~= mine then heard(waiter[3], 'grant ' .. owner .. ' ' .. fence) end
        return owner, fence
      end
    end
  end
end
