#!lua flags=allow-oom
-- Purpose: hand the lock to a successor in the holder's own process, with a fence of its own.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- KEYS: 4 waiters
-- ARGV: 1 prefix of the wake channels
-- ARGV: 2 owner
-- ARGV: 3 successor
-- ARGV: 4 lease (ms)
-- ARGV: 5 process
-- ARGV: 6 metadata
-- Returns: {GRANTED, fence} | {NOT_HELD} | {WRONGTYPE}
-- Retry: safe - a successor that already holds is answered with its fence
local owner, fence = holder()
if type(owner) == 'table' then return owner end
if owner ~= ARGV[3] then
  if owner ~= ARGV[2] then return {'NOT_HELD'} end
  fence = next_fence()
  if not fence then return FOREIGN end
end
grant(ARGV[3], fence, ARGV[4], ARGV[5], ARGV[6])
return {'GRANTED', fence}
