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
return acquire(ARGV[1], ARGV[2])
