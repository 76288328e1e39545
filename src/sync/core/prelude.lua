-- Shared by the scripts of the lock, which read the server's TIME into `time` ahead of it.
-- KEYS: 1 the lock, a string: 'fence 2 id seal process metadata'. Its TTL is the lease, 2 is the
--   format. The blank behind the id is a '+' once a waiter queues, so that a release need not look.
-- 2 the fence counter of the bucket: 16 digits. 3 the queue, a hash of numbered positions: number to
--   'deadline since lease id process metadata' and id to number; 'head', 'tail': the first and the
--   last number; 'clock', 'at': below.
-- A process has a digit ahead: 0 takes no position, 1 asks for its grant, 2 is told of it by push.
local CLAIM = 3000 -- The most that a hand-over grants until the new holder renews (ms).
local now, now_ms = time[1] * 1000000 + time[2], time[1] * 1000 + math.floor(time[2] / 1000)
local held, queue, last, FOREIGN = {}, {}, 0, {'WRONGTYPE'}

-- Reads all keys ahead of the first write: a script that fails half way is not rolled back. Returns the
-- script's answer if a key is foreign, or this user may not read it. Some scripts go by offsets.
local function unreadable()
  local lock, counter = redis.pcall('GET', KEYS[1]), redis.pcall('GET', KEYS[2])
  local places = redis.pcall('HMGET', KEYS[3], 'head', 'tail', 'clock', 'at')
  for _, read in ipairs({lock, counter, places}) do
    if type(read) == 'table' and read.err then return string.find(read.err, '^WRONGTYPE') and FOREIGN or read end
  end
  if lock then
    local format = string.match(lock, '^%d+ (%d+) ') or string.find(lock, '^%x+ %d+ %x+ ') and '1'
    if format and format ~= '2' then return {'FORMAT', format} end
    held.fence, held.id, held.seal, held.process, held.meta = string.match(lock, '^(%d+) 2 (%x+)[ +](%x+) (%x+) (.*)$')
    if not held.id or #held.fence ~= 16 or #held.id ~= 32 then return {'WRONGTYPE', 'lock'} end
  end
  last = string.find(counter or '0', '^%d+$') and math.max(tonumber(counter or 0), tonumber(held.fence or 0))
  if not last or last >= 9007199254740991 then return FOREIGN end
  if not places[1] and redis.call('EXISTS', KEYS[3]) == 1 then return FOREIGN end
  for index, name in ipairs({'head', 'tail', 'clock', 'at'}) do
    queue[name] = tonumber(places[index] or ({1, 0, 0, now_ms})[index])
    if not queue[name] then return FOREIGN end
  end
  -- The queue's own clock, in ms, by which positions lapse. It advances by the time since a waiter
  -- last asked, but never by more than a live waiter leaves between two questions. So no step of the
  -- server's clock makes all positions lapse.
  local passed = math.max(0, now_ms - queue.at)
  queue.real = queue.clock + passed
  queue.clock, queue.at = queue.clock + math.min(passed, 1500), now_ms
end

-- Returns the position with a number: nil if there is none, without an id if it is foreign.
local function place(number)
  local text, found = redis.call('HGET', KEYS[3], number), {}
  if not text then return nil end
  found.deadline, found.since, found.lease, found.id, found.process, found.meta =
    string.match(text, '^(%d+) (%d+) (%d+) (%x+) (%x+) (.*)$')
  found.alive = found.id and tonumber(found.deadline) > queue.clock
  return found
end

-- Removes a position from the queue. A queue without positions is deleted.
local function vacate(number, id)
  redis.call('HDEL', KEYS[3], number, id or number)
  if number == queue.head then queue.head = queue.head + 1 end
  if redis.call('HLEN', KEYS[3]) <= 4 then
    redis.call('DEL', KEYS[3])
    queue.head = queue.tail + 1
  end
end

-- Drops at most `most` lapsed positions at the head. Returns the first one that is alive. The hole
-- that a waiter leaves behind counts as a 16th of a position.
local function first(most)
  while most > 0 and queue.head <= queue.tail do
    local found = place(queue.head)
    if found and found.alive then return found end
    if found then vacate(queue.head, found.id) else queue.head = queue.head + 1 end
    most = most - (found and 1 or 1 / 16)
  end
end

-- A fence is above the last one, and not below the clock, so that fences rise when the counter is lost.
local function next_fence()
  last = math.max(last + 1, now)
  local fence = string.format('%016.0f', last)
  redis.call('SET', KEYS[2], fence)
  return fence
end

-- Makes `id` the holder.
local function grant(fence, id, seal, lease, process, meta)
  local queued = redis.call('EXISTS', KEYS[3]) == 1 and '+' or ' '
  redis.call('SET', KEYS[1], fence .. ' 2 ' .. id .. queued .. seal .. ' ' .. process .. ' ' .. meta, 'PX', lease)
  held = {fence = fence, id = id, seal = seal, process = process, meta = meta}
end

-- Publishes to a process. Returns whether it listens. A user that may not publish reaches no process.
local function heard(process, message)
  local listeners = redis.pcall('SPUBLISH', string.match(KEYS[1], '^.-}') .. ':wake:' .. string.sub(process, 2), message)
  return type(listeners) == 'number' and listeners > 0
end

-- Grants the lock to the first waiter that is alive and listens, or asks, for its claim time. `mine`
-- is the caller's own id, which needs no message. `secret` is that of the former holder, if the
-- former holder hands over. Skips at most 64 positions: the next request continues.
local function hand_over(mine, secret)
  for _ = 1, queue.head <= queue.tail and 64 or 0 do
    local next = first(1)
    if next then
      vacate(queue.head, next.id)
      if next.id == mine or heard(next.process, 'there') or string.sub(next.process, 1, 1) == '1' then
        grant(next_fence(), next.id, next.id, math.min(next.lease, CLAIM), next.process, next.meta)
        -- Published once it is granted: a replica passes it on to waiters that no longer listen here.
        if next.id ~= mine then heard(next.process, 'grant ' .. next.id .. ' ' .. held.fence .. ' ' .. (secret or '-')) end
        break
      end
    end
  end
  return queue.head > queue.tail and redis.call('DEL', KEYS[3]) or redis.call('HSET', KEYS[3], 'head', queue.head)
end
