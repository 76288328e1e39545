-- Shared by the scripts of all synchronizers, which read the server's TIME into `time` ahead of it: the
-- queue. Behind it stand the holders of a kind, whose functions are in `kind`, and then `grants.lua`.
-- KEYS: 1 the holders, as the kind keeps them. 2 the fence counter of the bucket: 16 digits. 3 the queue,
--   a hash of numbered positions: number to 'deadline since lease id process detail' and id to number;
--   'head', 'tail': the first and the last number; 'clock', 'at': below.
-- A process has a digit ahead: 0 takes no position, 1 asks for its grant, 2 receives it by push.
-- A detail is what the kind stores with a holder: the queue passes it on as it is.
local now, now_ms = time[1] * 1000000 + time[2], time[1] * 1000 + math.floor(time[2] / 1000)
local kind, queue, last, FOREIGN = {}, {}, 0, {'WRONGTYPE'}

-- Returns the script's answer if what was read is foreign, or this user may not read it.
local function refusal(read)
  if type(read) == 'table' and read.err then return string.find(read.err, '^WRONGTYPE') and FOREIGN or read end
end

-- Reads all keys ahead of the first write: a script that fails half way is not rolled back. Returns the
-- script's answer if a key is foreign, or this user may not read it. Some scripts go by offsets.
local function unreadable()
  local refused, fence = kind.read()
  local counter = redis.pcall('GET', KEYS[2])
  local places = redis.pcall('HMGET', KEYS[3], 'head', 'tail', 'clock', 'at')
  refused = refused or refusal(counter) or refusal(places)
  if refused then return refused end
  last = string.find(counter or '0', '^%d+$') and math.max(tonumber(counter or 0), fence)
  if not last or last >= 9007199254740991 then return FOREIGN end
  if not places[1] and redis.call('EXISTS', KEYS[3]) == 1 then return FOREIGN end
  -- Kept, and not asked for again: while its slot moves, a key that has gone cannot even be asked for.
  queue.there = places[1] and true
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
  found.deadline, found.since, found.lease, found.id, found.process, found.detail =
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
    queue.head, queue.there = queue.tail + 1, false
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

-- Takes a position for a waiter, or keeps the one that it has. Returns the number of the position, nil for
-- a process that takes none.
local function stand(mine, lease, process, detail)
  local number = tonumber(redis.call('HGET', KEYS[3], mine) or nil)
  if string.sub(process, 1, 1) == '0' then return number end
  local since = number and (place(number) or {}).since or queue.clock
  if not number then queue.tail, number = queue.tail + 1, queue.tail + 1 end
  local text = table.concat({string.format('%.0f %.0f', queue.clock + 3000, since), lease, mine, process, detail}, ' ')
  redis.call('HSET', KEYS[3], number, text, mine, number, 'tail', queue.tail, 'clock', queue.clock, 'at', queue.at)
  queue.there = true
  first(2)
  redis.call('HSET', KEYS[3], 'head', queue.head)
  redis.call('PEXPIRE', KEYS[3], 7200000)
  return number
end
