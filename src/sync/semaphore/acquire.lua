#!lua
-- Purpose: take permits if enough are free and nobody waits, otherwise take or keep a position in the queue.
-- KEYS: 1 semaphore
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- ARGV: 1 ' 2 id seal process weight limit metadata', as for a lock
-- ARGV: 2 lease (ms)
-- Returns: fence | {BUSY, ms until the first lease may end (-1 if none does), last fence of the bucket,
--   permits held, ''} | {WRONGTYPE}
-- Retry: unsafe - a second run answers as the first, but a copy that arrives after the release
--   would take permits for an owner that nobody uses; a caller without an answer asks as another
local time = redis.call('TIME')
-- The prelude stands here.
return acquire(ARGV[1], ARGV[2])
