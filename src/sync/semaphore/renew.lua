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
  local read = redis.pcall('HMGET', KEYS[index], id, 'next')
  if read.err and not string.find(read.err, '^WRONGTYPE') then return read end
  local deadline, rest = string.match(not read.err and read[1] or '', '^(%d+)( .*)$')
  local held = deadline and tonumber(deadline) > now_ms
  if held then
    -- The clock may have stepped back since `next` was written, or the lease is shorter than the spacing.
    local next = string.format('%.0f', math.min(tonumber(read[2] or '0') or 0, now_ms + lease))
    redis.call('HSET', KEYS[index], id, string.format('%.0f', now_ms + lease) .. rest, 'next', next)
    if redis.call('PTTL', KEYS[index]) < tonumber(lease) then redis.call('PEXPIRE', KEYS[index], lease) end
  end
  answer[index + 1] = held and 1 or 0
end
return answer
