#!lua
-- Purpose: stores what the leader loaded, if nobody removed, set or took over meanwhile.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 token of the leader
-- ARGV: 2 entry, its deadlines still zero
-- ARGV: 3 ttl, ms
-- Returns: {'STORED'} or {'REFUSED'} or {'WRONGTYPE'}
-- Retry: safe because a second run meets no lease of its own but the very entry, but for the deadlines;
--   whoever wrote it, these bytes are valid now
if foreign() then return {'WRONGTYPE'} end
if redis.call('HGET', KEYS[2], 'token') == ARGV[1] then
  store(ARGV[2], ARGV[3])
  finish('+')
  return {'STORED'}
end
if redis.call('STRLEN', KEYS[1]) == #ARGV[2] then
  local found = redis.call('GET', KEYS[1])
  if string.sub(found, 1, 8) == string.sub(ARGV[2], 1, 8)
      and string.sub(found, 21) == string.sub(ARGV[2], 21) then
    return {'STORED'}
  end
end
return {'REFUSED'}
