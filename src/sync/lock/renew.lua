#!lua flags=allow-oom
-- Purpose: renew the leases of several locks; an expired lease is never restored.
-- KEYS: 1.. locks
-- ARGV: 1.. per lock: id, lease (ms)
-- Returns: {OK, 1 renewed or 0 lost per lock}
-- Retry: safe - a lease renewed twice is a lease renewed
local answer = {'OK'}
for index = 1, #KEYS do
  local value = redis.pcall('GET', KEYS[index])
  if type(value) == 'table' and not string.find(value.err, '^WRONGTYPE') then return value end
  local held = type(value) == 'string' and string.sub(value, 18, 51) == '2 ' .. ARGV[2 * index - 1]
  if held then redis.call('PEXPIRE', KEYS[index], ARGV[2 * index]) end
  answer[index + 1] = held and 1 or 0
end
return answer
