#!lua flags=allow-oom
-- Purpose: hand the lock to a successor in the holder's own process, with a fence of its own.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- KEYS: 4 waiters
-- ARGV: 1 owner
-- ARGV: 2 successor
-- ARGV: 3 lease (ms)
-- ARGV: 4 wake channel of the process
-- ARGV: 5 metadata
-- Returns: {GRANTED, fence} | {NOT_HELD} | {WRONGTYPE}
-- Retry: safe - a successor that already holds is answered with its fence
if foreign() then return {'WRONGTYPE'} end
local holder = redis.call('HMGET', KEYS[1], 'owner', 'fence')
if holder[1] == ARGV[2] then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {'GRANTED', holder[2]}
end
if holder[1] ~= ARGV[1] then return {'NOT_HELD'} end
return {'GRANTED', grant(ARGV[2], next_fence(), ARGV[3], ARGV[4], ARGV[5])}
