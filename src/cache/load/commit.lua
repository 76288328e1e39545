#!lua flags=allow-cross-slot-keys
-- Purpose: stores what the leader loaded, unless the value was removed or set, or the lease taken
--   over, meanwhile.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 token of the leader
-- ARGV: 2 entry, its deadlines still zero, or bare value
-- ARGV: 3 ttl, ms
-- ARGV: 4 fence of the lease
-- ARGV: 5 stale window, ms, or '' for a bare value
-- Returns: {'STORED'} or {'REFUSED'} or {'WRONGTYPE'}
-- Retry: safe - a second run finds its lease gone and the same entry, except for the deadlines;
--   whichever call wrote it, these bytes are valid now
if foreign() then return {'WRONGTYPE'} end
local held = redis.call('HMGET', KEYS[2], 'token', 'fence')
if held[1] == ARGV[1] and held[2] == ARGV[4] then
  store(ARGV[2], ARGV[3], ARGV[5])
  finish('+')
  return {'STORED'}
end
if held[1] == ARGV[1] then
  -- The lease had ended; a late copy of the leader's request has taken it again.
  finish('-')
  return {'REFUSED'}
end
if redis.call('STRLEN', KEYS[1]) == #ARGV[2] then
  local found = redis.call('GET', KEYS[1])
  if ARGV[5] == '' then return {found == ARGV[2] and 'STORED' or 'REFUSED'} end
  if string.sub(found, 1, 8) == string.sub(ARGV[2], 1, 8)
      and string.sub(found, 21) == string.sub(ARGV[2], 21) then
    return {'STORED'}
  end
end
return {'REFUSED'}
