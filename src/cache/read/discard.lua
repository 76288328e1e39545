#!lua flags=allow-oom
-- Purpose: removes an entry that the caller found damaged, unless it was replaced meanwhile.
-- KEYS: 1 value
-- ARGV: 1 first 36 bytes of the entry
-- ARGV: 2 its length in bytes
-- Returns: {'OK'} or {'CHANGED'} or {'WRONGTYPE'}
-- Retry: safe - a second run finds nothing, or another entry, and leaves it alone
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then
  return {redis.call('EXISTS', KEYS[1]) == 0 and 'CHANGED' or 'WRONGTYPE'}
end
if redis.call('STRLEN', KEYS[1]) ~= tonumber(ARGV[2])
    or redis.call('GETRANGE', KEYS[1], 0, 35) ~= ARGV[1] then
  return {'CHANGED'}
end
redis.call('DEL', KEYS[1])
return {'OK'}
