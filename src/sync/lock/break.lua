#!lua flags=allow-oom
-- Purpose: take the lock away from its holder, notify the holder, and hand the lock to the next waiter.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- ARGV: none
-- Returns: {BROKEN, fence of the former holder} | {FREE} | {WRONGTYPE} | {FORMAT, format of the lock}
-- Retry: unsafe - a second run would break the lock of the next holder
local time = redis.call('TIME')
-- The prelude stands here.
local refused = unreadable()
if refused then return refused end
if kind.fits() then return {'FREE'} end
local fence = held.fence
heard(held.process, 'broken ' .. held.id)
kind.drop(held.id)
hand_over()
kind.settle()
return {'BROKEN', fence}
