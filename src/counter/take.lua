#!lua flags=allow-oom
-- Purpose: read a counter and remove it.
-- KEYS: 1 counter
-- ARGV: none
-- Returns: {TAKEN, value} | {WRONGTYPE} | {NOT_A_NUMBER}
-- Retry: unsafe - a second run would answer 0
local before, refused = current()
if not before then return refused end
redis.call('DEL', KEYS[1])
return {'TAKEN', text(before)}
