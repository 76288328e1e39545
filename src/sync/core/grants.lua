-- Shared by the scripts of all synchronizers, behind `queue.lua` and the holders of a kind: grants. A kind has
--   kind.read(): reads the holders. Returns the script's answer if they are foreign, and their last fence
--   kind.fence_of(id, detail): the fence of a holder that has what `detail` says, nil for all others
--   kind.fits(detail): whether that can be granted now; without a detail, whether any waiter may be granted
--   kind.grant(fence, id, seal, lease, process, detail): makes `id` a holder, or changes what it holds
--   kind.drop(id): takes a holder out. Returns whether it was one
--   kind.settle(): writes what was dropped, if no grant has
--   kind.queued(), kind.busy(number): for a waiter that takes a position, and for its answer
local CLAIM = 3000 -- The most that a hand-over grants until the new holder renews (ms).

-- A fence is above the last one, and not below the clock, so that fences rise when the counter is lost.
local function next_fence()
  last = math.max(last + 1, now)
  local fence = string.format('%016.0f', last)
  redis.call('SET', KEYS[2], fence)
  return fence
end

-- Publishes to a process. Returns whether it listens. A user that may not publish reaches no process.
local function heard(process, message)
  local listeners = redis.pcall('SPUBLISH', string.match(KEYS[1], '^.-}') .. ':wake:' .. string.sub(process, 2), message)
  return type(listeners) == 'number' and listeners > 0
end

-- Grants to the waiters at the head that are alive and listen, or ask, for their claim time, as long as
-- they fit. The first one that does not fit holds up those behind it, so none is overtaken for ever. `mine`
-- is the caller's own id, which needs no message. `secret` is that of the former holder, if the former
-- holder hands over. Looks at 64 positions at most, and returns whether that ended it: the next request
-- continues.
local function hand_over(mine, secret)
  local left = 64
  while left > 0 and queue.head <= queue.tail and kind.fits() do
    left = left - 1
    local next = first(1)
    if next then
      if not kind.fits(next.detail) then break end
      vacate(queue.head, next.id)
      if next.id == mine or heard(next.process, 'there') or string.sub(next.process, 1, 1) == '1' then
        local fence = next_fence()
        kind.grant(fence, next.id, next.id, math.min(next.lease, CLAIM), next.process, next.detail)
        -- Published once it is granted: a replica passes it on to waiters that no longer listen here.
        if next.id ~= mine then heard(next.process, 'grant ' .. next.id .. ' ' .. fence .. ' ' .. (secret or '-')) end
      end
    end
  end
  if queue.head > queue.tail then
    if queue.there then redis.call('DEL', KEYS[3]) end
    queue.there = false
    return false
  end
  redis.call('HSET', KEYS[3], 'head', queue.head, 'clock', queue.clock, 'at', queue.at)
  return left == 0 and kind.fits()
end

-- Answers a request: a fence, or BUSY and what a waiter must know. `request` is ' 2 id seal process detail'.
local function acquire(request, lease)
  local refused = unreadable()
  if refused then return refused end
  local mine, seal, process, detail = string.match(request, '^ 2 (%x+) (%x+) (%x+) (.*)$')
  local fence = kind.fence_of(mine, detail)
  if fence then
    kind.grant(fence, mine, nil, lease, process, detail)
    -- It may have asked for less than it had.
    if kind.fits() then hand_over() end
    kind.settle()
    return fence
  end
  local number = stand(mine, lease, process, detail)
  if number then kind.queued() end
  local more = kind.fits() and hand_over(mine)
  fence = kind.fence_of(mine, detail)
  if not fence and kind.fits(detail) and not queue.there then fence = next_fence() end
  if fence then
    kind.grant(fence, mine, seal, lease, process, detail)
    return fence
  end
  kind.settle()
  -- More dead positions than one script skips: the caller asks again at once, which continues here.
  if more then return {'BUSY', 0, string.format('%.0f', last), '', ''} end
  return kind.busy(number)
end

-- Gives up what `mine` holds, and its position in the queue. `secret` goes to the next holder.
local function release(mine, secret)
  local refused = unreadable()
  if refused then return refused end
  local number = tonumber(redis.call('HGET', KEYS[3], mine) or nil)
  if number then vacate(number, mine) end
  local had = kind.drop(mine)
  -- Also if there was only a position: what stands behind it may fit.
  if kind.fits() then hand_over(nil, had and secret) end
  kind.settle()
  return had and 'RELEASED' or 'NOT_HELD'
end
