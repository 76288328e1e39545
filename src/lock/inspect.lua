#!lua flags=no-writes
-- Purpose: tell who holds the lock and who waits for it.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- KEYS: 4 waiters
-- ARGV: 1 prefix of the wake channels
-- Returns: {OK, fence or '', remaining lease (ms), metadata, then per waiter: waiting since (ms), metadata} | {WRONGTYPE}
-- Retry: safe - reads only
local owner, fence, _, meta = holder()
if type(owner) == 'table' then return owner end
if foreign() then return FOREIGN end
local answer = {'OK', fence or '', redis.call('PTTL', KEYS[1]), meta or ''}
local queue = redis.call('ZRANGE', KEYS[3], 0, 99, 'WITHSCORES')
for index = 1, #queue, 2 do
  local packed = redis.call('HGET', KEYS[4], queue[index])
  local waiter = packed and cmsgpack.unpack(packed)
  if waiter and waiter[1] * 1000 > now() then
    answer[#answer + 1] = math.max(0, math.floor((now() - tonumber(queue[index + 1])) / 1000))
    answer[#answer + 1] = waiter[4]
  end
end
return answer
