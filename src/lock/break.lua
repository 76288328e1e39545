#!lua flags=allow-oom
-- Purpose: take the lock away from whoever holds it, tell them, and hand it to the next waiter.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- KEYS: 4 waiters
-- ARGV: 1 prefix of the wake channels
-- Returns: {BROKEN, fence of the former holder} | {FREE} | {WRONGTYPE}
-- Retry: unsafe - a second run would break the lock of the next holder
local owner, fence, process = holder()
if type(owner) == 'table' then return owner end
if foreign() then return FOREIGN end
if not owner then return {'FREE'} end
heard(process, 'broken ' .. owner)
if not hand_over() then redis.call('DEL', KEYS[1]) end
return {'BROKEN', fence}
