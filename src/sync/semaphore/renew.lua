#!lua flags=allow-oom
-- Purpose: renew the leases of holders of semaphores; a lease that has ended is never restored.
-- KEYS: 1.. semaphores
-- ARGV: 1.. per semaphore: id, lease (ms)
-- Returns: {OK, 1 renewed or 0 lost per semaphore}
-- Retry: safe - a lease renewed twice is a lease renewed
local time = redis.call('TIME')
local now_ms, answer = time[1] * 1000 + math.floor(time[2] / 1000), {'OK'}
for index = 1, #KEYS do
  local id, lease = ARGV[2 * index - 1], ARGV[2 * index]
  local value = redis.pcall('HGET', KEYS[index], id)
  if type(value) == 'table' and not string.find(value.err, '^WRONGTYPE') then return value end
  local deadline, rest = string.match(type(value) == 'string' and value or '', '^(%d+)( .*)$')
  local held = deadline and tonumber(deadline) > now_ms
  if held then
    redis.call('HSET', KEYS[index], id, string.format('%.0f', now_ms + lease) .. rest)
    if redis.call('PTTL', KEYS[index]) < tonumber(lease) then redis.call('PEXPIRE', KEYS[index], lease) end
  end
  answer[index + 1] = held and 1 or 0
end
return answer
