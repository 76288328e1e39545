#!lua flags=allow-oom
-- Purpose: give up the lock, or the position in the queue; hand a lock given up to the next waiter.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- ARGV: 1 the value of the lock behind the fence while no waiter is in the queue: '2 id '
-- ARGV: 2 the secret whose digest is the seal of the lock, as the proof for the next holder; ''
--   if the caller does not know of a grant
-- Returns: RELEASED | NOT_HELD | {WRONGTYPE, 'holder' if that is why} | {FORMAT, format of the lock}
-- Retry: unsafe - harmless, but a second run answers NOT_HELD, so the caller decides what that means
if redis.call('GETRANGE', KEYS[1], '17', '51') == ARGV[1] then
  redis.call('DEL', KEYS[1])
  return 'RELEASED'
end
local time = redis.call('TIME')
-- The prelude stands here.
return release(string.sub(ARGV[1], 3, 34), ARGV[2])
