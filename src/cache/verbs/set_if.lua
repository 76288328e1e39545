#!lua flags=allow-cross-slot-keys
-- Purpose: stores a value if the entry is still the one that the caller judged, and ends a load under way.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 entry, its deadlines still zero
-- ARGV: 2 ttl, ms, or '' to keep the one of the entry
-- ARGV: 3 first 36 bytes of the entry that the caller judged, or '' when there was none
-- Returns: {'OK'} or {'CHANGED'} or {'WRONGTYPE'}
-- Retry: unsafe - a second run would find the entry changed by the first
if foreign() then return {'WRONGTYPE'} end
if not still(ARGV[3]) then return {'CHANGED'} end
if ARGV[2] == '' then
  local kept = redis.call('GETRANGE', KEYS[1], 8, 19)
  redis.call('SET', KEYS[1], string.sub(ARGV[1], 1, 8) .. kept .. string.sub(ARGV[1], 21), 'KEEPTTL')
else
  store(ARGV[1], ARGV[2], 0)
end
finish('+')
return {'OK'}
