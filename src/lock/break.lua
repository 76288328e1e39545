#!lua flags=allow-oom
-- Purpose: take the lock away from whoever holds it, tell them, and hand it to the next waiter.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- KEYS: 4 waiters
-- ARGV: none
-- Returns: {BROKEN, fence of the former holder} | {FREE} | {WRONGTYPE}
-- Retry: unsafe - a second run would break the lock of the next holder
if foreign() then return {'WRONGTYPE'} end
local holder = redis.call('HMGET', KEYS[1], 'owner', 'wake', 'fence')
if not holder[1] then return {'FREE'} end
redis.call('SPUBLISH', holder[2], 'broken ' .. holder[1])
if not hand_over() then
  redis.call('DEL', KEYS[1])
end
return {'BROKEN', holder[3]}
