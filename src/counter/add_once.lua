#!lua
-- Purpose: add to a counter as add.lua does, at most once for each id within a window.
-- KEYS: 1 counter
-- KEYS: 2 record of the id: value and applied delta of the add
-- ARGV: 1 delta (decimal)
-- ARGV: 2 least value (decimal)
-- ARGV: 3 greatest value (decimal)
-- ARGV: 4 what to do at the ends: reject or saturate
-- ARGV: 5 TTL on creation (ms), 0 for none
-- ARGV: 6 window (ms)
-- Returns: {ADDED, value, applied, remaining TTL (ms, -1 none, -2 absent)} | {OVERFLOW}
--   | {OUT_OF_RANGE, value} | {WRONGTYPE} | {NOT_A_NUMBER}
-- Retry: safe - a second run finds the record and answers what the first did
local record = redis.pcall('GET', KEYS[2])
if record then
  if type(record) ~= 'string' then return refusal(record) end
  local value, applied = string.match(record, '^(%-?%d+) (%-?%d+)$')
  if not value then return {'WRONGTYPE'} end
  return {'ADDED', value, applied, redis.call('PTTL', KEYS[1])}
end
local answer = add()
if answer[1] == 'ADDED' then
  redis.call('SET', KEYS[2], answer[2] .. ' ' .. answer[3], 'PX', ARGV[6])
end
return answer
