#!lua flags=allow-cross-slot-keys
-- Purpose: moves the entry that the caller judged to another version of its cache, and ends loads of both
--   keys that are under way.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- KEYS: 3 value of the other version
-- KEYS: 4 load lease of the other version
-- ARGV: 1 first 36 bytes of the entry
-- Returns: {'OK'} or {'CHANGED'} or {'WRONGTYPE'}
-- Retry: unsafe - a second run would find the entry gone, and report that nothing was moved
if foreign() or other(3, 'string') or other(4, 'hash') then return {'WRONGTYPE'} end
if not still(ARGV[1]) then return {'CHANGED'} end
redis.call('RENAME', KEYS[1], KEYS[3])
finish('-')
finish('+', 3, 4)
return {'OK'}
