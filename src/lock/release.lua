#!lua flags=allow-oom
-- Purpose: give up the lock, or the place in the queue, and hand a lock given up to the next waiter.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- KEYS: 4 waiters
-- ARGV: 1 prefix of the wake channels
-- ARGV: 2 owner
-- Returns: {RELEASED} | {NOT_HELD} | {WRONGTYPE}
-- Retry: unsafe - harmless, but a second run answers NOT_HELD, so the caller decides what that means
local value = redis.pcall('GET', KEYS[1])
local mine = type(value) == 'string' and string.sub(value, 1, #ARGV[2] + 1) == ARGV[2] .. ' '
if mine and redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('DEL', KEYS[1])
  return {'RELEASED'}
end

local owner = holder()
if type(owner) == 'table' then return owner end
if foreign() then return FOREIGN end
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('HDEL', KEYS[4], ARGV[2])
if not mine then return {'NOT_HELD'} end
if not hand_over() then redis.call('DEL', KEYS[1]) end
return {'RELEASED'}
