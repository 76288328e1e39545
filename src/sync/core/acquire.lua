#!lua
-- Purpose: grant what is asked for if it is free and nobody waits, otherwise take or keep a position.
-- KEYS: 1 holders
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- ARGV: 1 ' 2 id seal process detail'; the digit ahead of the process says whether to take a position,
--   and how the process learns of a hand-over
-- ARGV: 2 lease (ms)
-- Returns: fence | what `kind.busy` answers | {WRONGTYPE, 'holder' if that is why}
-- Retry: unsafe - a second run answers as the first, but a copy that arrives after the release
--   would be granted to an owner that nobody uses; a caller without an answer asks as another
local time = redis.call('TIME')
-- The prelude stands here.
return acquire(ARGV[1], ARGV[2])
