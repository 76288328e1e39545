#!lua flags=allow-oom
-- Purpose: hand the lock to a successor in the holder's own process, with a fence of its own.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- ARGV: 1 id of the holder
-- ARGV: 2 id of the successor, which keeps the seal
-- ARGV: 3 lease (ms)
-- ARGV: 4 process
-- ARGV: 5 metadata
-- Returns: {GRANTED, fence} | {NOT_HELD} | {WRONGTYPE} | {FORMAT, format of the lock}
-- Retry: safe - a successor that already holds gets the same fence
local time = redis.call('TIME')
-- The prelude stands here.
local refused = unreadable()
if refused then return refused end
local fence = kind.fence_of(ARGV[2])
if not fence then
  if not kind.fence_of(ARGV[1]) then return {'NOT_HELD'} end
  fence = next_fence()
end
kind.grant(fence, ARGV[2], nil, ARGV[3], ARGV[4], ARGV[5])
return {'GRANTED', fence}
