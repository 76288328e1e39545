#!lua
-- Purpose: add to a counter as add.lua does, at most once for each id within a window.
-- KEYS: 1 counter
-- KEYS: 2 record of the id: value and applied delta of the add, and the token of its call
-- KEYS: 3 record of this call, whose window may end before it is sent again: as that of the id
-- ARGV: 1 delta (decimal)
-- ARGV: 2 least value (decimal)
-- ARGV: 3 greatest value (decimal)
-- ARGV: 4 what to do at the ends: reject or saturate
-- ARGV: 5 TTL of a counter that is created or has none (ms), 0 for none
-- ARGV: 6 window (ms)
-- ARGV: 7 token of this call (hex), the same each time that it is sent
-- ARGV: 8 how long the record of this call is kept (ms), 0 if that of the id lasts as long
-- Returns: {ADDED, value, applied, remaining TTL (ms, -1 none, -2 absent)} | {OVERFLOW}
--   | {OUT_OF_RANGE, value} | {WRONGTYPE} | {NOT_A_NUMBER}
--   | {REPEATED, value, applied, remaining TTL} where another call has added for this id
-- Retry: safe - a second run finds a record with its own token and answers what the first did
local record = ARGV[8] ~= '0' and redis.pcall('GET', KEYS[3]) or redis.pcall('GET', KEYS[2])
if record then
  if type(record) ~= 'string' then return refusal(record) end
  local value, applied, token = string.match(record, '^(%-?%d+) (%-?%d+) ?(%x*)$')
  if not value then return {'WRONGTYPE'} end
  local status = token == ARGV[7] and 'ADDED' or 'REPEATED'
  return {status, value, applied, redis.call('PTTL', KEYS[1])}
end
local answer = add()
if answer[1] == 'ADDED' then
  local made = answer[2] .. ' ' .. answer[3] .. ' ' .. ARGV[7]
  redis.call('SET', KEYS[2], made, 'PX', ARGV[6])
  if ARGV[8] ~= '0' then redis.call('SET', KEYS[3], made, 'PX', ARGV[8]) end
end
return answer
