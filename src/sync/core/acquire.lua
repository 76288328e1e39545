#!lua
-- Purpose: take the lock if it is free, otherwise take or keep a position in the queue.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- ARGV: 1 the value of the lock behind the fence: ' 2 id seal process metadata'; the digit ahead of the
--   process says whether to take a position, and how the process learns of a hand-over
-- ARGV: 2 lease (ms)
-- Returns: fence | {BUSY, remaining lease (ms, -1 if none), fence and metadata of the holder, seal of the
--   owner that hands over to the caller, '' if unknown} | {WRONGTYPE} | {FORMAT, format of the lock}
-- Retry: unsafe - a second run answers as the first, but a copy that arrives after the release
--   would take the lock for an owner that nobody uses; a caller without an answer asks as another
local time = redis.call('TIME')
if redis.call('EXISTS', KEYS[1], KEYS[3]) == 0 then
  -- The usual case runs ahead of the prelude, which costs time. Seconds have ten digits until 2286.
  local fence = time[1] .. time[2]
  if #fence < 16 then fence = string.format('%010.0f%06.0f', time[1], time[2]) end
  local before = redis.call('SET', KEYS[2], fence, 'GET')
  if not before or (#before == 16 and before < fence and not string.find(before, '%D')) then
    redis.call('SET', KEYS[1], fence .. ARGV[1], 'PX', ARGV[2])
    return fence
  end
  redis.call('SET', KEYS[2], before)
end
-- The prelude stands here.
local refused = unreadable()
if refused then return refused end
local mine, seal, process, meta = string.match(ARGV[1], '^ 2 (%x+) (%x+) (%x+) (.*)$')
if held.id == mine then
  grant(held.fence, mine, held.seal, ARGV[2], process, meta)
  return held.fence
end
local number = tonumber(redis.call('HGET', KEYS[3], mine) or nil)
if string.sub(process, 1, 1) ~= '0' then
  local since = number and (place(number) or {}).since or queue.clock
  if not number then queue.tail, number = queue.tail + 1, queue.tail + 1 end
  local text = table.concat({string.format('%.0f %.0f', queue.clock + 3000, since), ARGV[2], mine, process, meta}, ' ')
  redis.call('HSET', KEYS[3], number, text, mine, number, 'tail', queue.tail, 'clock', queue.clock, 'at', queue.at)
  first(2)
  redis.call('HSET', KEYS[3], 'head', queue.head)
  redis.call('PEXPIRE', KEYS[3], 7200000)
  if held.id then redis.call('SETRANGE', KEYS[1], 51, '+') end
end
if not held.id then
  hand_over(mine)
  if not held.id and redis.call('EXISTS', KEYS[3]) == 0 then held = {id = mine, fence = next_fence()} end
  if held.id == mine then
    grant(held.fence, mine, seal, ARGV[2], process, meta)
    return held.fence
  end
  -- More dead positions than one script skips: the caller asks again at once, which continues here.
  if not held.id then return {'BUSY', 0, string.format('%.0f', last), '', ''} end
end
-- Who hands over to the caller: the next waiter ahead, or the holder if surely none is ahead.
local ahead, least = nil, math.max(queue.head, (number or 0) - 8)
for before = (number or 0) - 1, least, -1 do
  ahead = ahead or (place(before) or {}).id
end
ahead = ahead or least == queue.head and held.seal or ''
return {'BUSY', redis.call('PTTL', KEYS[1]), held.fence, held.meta, ahead}
