#!lua flags=allow-oom
-- Purpose: takes names out of the index of a tag, unless they were noted again.
-- KEYS: 1 index
-- ARGV: 1.. per name: the name, its score
-- Returns: {'OK'} or {'WRONGTYPE'}
-- Retry: safe - a second run finds what is left, and leaves it alone
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and kind ~= 'zset' then return {'WRONGTYPE'} end
local gone = {}
for at = 1, #ARGV, 2 do
  if redis.call('ZSCORE', KEYS[1], ARGV[at]) == ARGV[at + 1] then gone[#gone + 1] = ARGV[at] end
end
-- At once and last: while its slot moves, an index that is empty cannot be asked any more.
if #gone > 0 then redis.call('ZREM', KEYS[1], unpack(gone)) end
return {'OK'}
