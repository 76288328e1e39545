#!lua flags=allow-cross-slot-keys
-- Purpose: ends the lease of a load that has failed, and leaves a record in its place, for the
--   callers that wait and for those that ask soon. Nothing is left of a load that was invalidated
--   or superseded.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 token of the leader
-- ARGV: 2 fence of the lease
-- ARGV: 3 record
-- ARGV: 4 ms that the record is kept
-- Returns: {'OK'} or {'LOST'} or {'WRONGTYPE'}
-- Retry: safe - a second run meets the record of the first and answers the same
if foreign() then return {'WRONGTYPE'} end
local held = redis.call('HMGET', KEYS[2], 'token', 'fence', 'failed')
if held[1] ~= ARGV[1] then
  return {held[2] == ARGV[2] and held[3] == ARGV[3] and 'OK' or 'LOST'}
end
if held[2] ~= ARGV[2] then
  -- The lease had ended; a late copy of the leader's request has taken it again.
  finish('-')
  return {'LOST'}
end
local fields = redis.call('HKEYS', KEYS[2])
-- Ahead of the removals: while its slot moves, a key that has gone cannot come back.
redis.call('HSET', KEYS[2], 'failed', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
local gone = {}
for _, field in ipairs(fields) do
  if field ~= 'fence' and field ~= 'failed' then gone[#gone + 1] = field end
end
redis.call('HDEL', KEYS[2], unpack(gone))
wake(fields, '-', 1)
return {'OK'}
