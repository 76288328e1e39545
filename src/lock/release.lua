#!lua flags=allow-oom
-- Purpose: give up the lock, or the place in the queue, and hand a lock given up to the next waiter.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- KEYS: 4 waiters
-- ARGV: 1 owner
-- Returns: {RELEASED} | {NOT_HELD} | {WRONGTYPE}
-- Retry: unsafe - harmless, but a second run answers NOT_HELD, so the caller decides what that means
if foreign() then return {'WRONGTYPE'} end
if redis.call('ZREM', KEYS[3], ARGV[1]) > 0 then
  redis.call('HDEL', KEYS[4], ARGV[1])
end
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return {'NOT_HELD'} end
if not hand_over() then
  redis.call('DEL', KEYS[1])
end
return {'RELEASED'}
