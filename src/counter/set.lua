#!lua
-- Purpose: set a counter; its TTL stays as it is.
-- KEYS: 1 counter
-- ARGV: 1 value (decimal)
-- Returns: {SET} | {WRONGTYPE} | {NOT_A_NUMBER}
-- Retry: unsafe - a second run would undo what others did after the first
local before, refused = current()
if not before then return refused end
redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL')
return {'SET'}
