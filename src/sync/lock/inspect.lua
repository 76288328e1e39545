#!lua flags=no-writes
-- Purpose: report who holds the lock and who waits for it.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- ARGV: none
-- Returns: {OK, fence or '', remaining lease (ms), metadata, then per waiter: waiting since (ms), metadata}
--   | {WRONGTYPE} | {FORMAT, format of the lock}
-- Retry: safe - reads only
local time = redis.call('TIME')
-- The prelude stands here.
local refused = unreadable()
if refused then return refused end
local answer = {'OK', held.fence or '', redis.call('PTTL', KEYS[1]), held.meta or ''}
for number = queue.head, math.min(queue.tail, queue.head + 999) do
  local waiter = place(number)
  if waiter and waiter.id and tonumber(waiter.deadline) > queue.real and #answer < 204 then
    answer[#answer + 1] = math.max(0, queue.real - waiter.since)
    answer[#answer + 1] = waiter.detail
  end
end
return answer
