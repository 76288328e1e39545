#!lua flags=no-writes
-- Purpose: returns the next names in the index of a tag, in the order of their scores. A name that
--   was there all the time, and was not noted again, is returned by one page or several.
-- KEYS: 1 index
-- ARGV: 1 score of the name behind which the page begins, or empty to begin with the first
-- ARGV: 2 that name
-- ARGV: 3 how many names at most
-- Returns: {'OK', then per name the name and its score} or {'WRONGTYPE'}
-- Retry: safe - it only reads
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and kind ~= 'zset' then return {'WRONGTYPE'} end
local from = 0
if ARGV[1] ~= '' then
  if redis.call('ZSCORE', KEYS[1], ARGV[2]) == ARGV[1] then
    from = redis.call('ZRANK', KEYS[1], ARGV[2]) + 1
  else
    from = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[1])
  end
end
local page = redis.call('ZRANGE', KEYS[1], from, from + ARGV[3] - 1, 'WITHSCORES')
return {'OK', unpack(page)}
