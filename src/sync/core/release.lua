#!lua flags=allow-oom
-- Purpose: give up what an owner holds, or its position; grant what is free then to the next waiters.
-- KEYS: 1 holders
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- ARGV: 1 '2 id '
-- ARGV: 2 the secret whose digest is the seal of the holder, as the proof for the next one
-- Returns: RELEASED | NOT_HELD | {WRONGTYPE, 'holder' if that is why}
-- Retry: unsafe - harmless, but a second run answers NOT_HELD, so the caller decides what that means
local time = redis.call('TIME')
-- The prelude stands here.
return release(string.sub(ARGV[1], 3, 34), ARGV[2])
