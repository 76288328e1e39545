#!lua flags=allow-oom
-- Purpose: give up permits, or the position in the queue; grant what is free then to the next waiters.
-- KEYS: 1 semaphore
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- ARGV: 1 '2 id ', as for a lock
-- ARGV: 2 a secret, as for a lock; waiters of a semaphore do not need it
-- Returns: RELEASED | NOT_HELD | {WRONGTYPE, 'holder' if that is why}
-- Retry: unsafe - harmless, but a second run answers NOT_HELD, so the caller decides what that means
local time = redis.call('TIME')
-- The prelude stands here.
return release(string.sub(ARGV[1], 3, 34), ARGV[2])
