#!lua flags=allow-oom,allow-cross-slot-keys
-- Purpose: removes the entry that the caller has read, and ends a load under way.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 first 36 bytes of the entry
-- Returns: {'OK'} or {'CHANGED'} or {'WRONGTYPE'}
-- Retry: unsafe - a second run would find the entry gone, and somebody must have it
if foreign() then return {'WRONGTYPE'} end
if not still(ARGV[1]) then return {'CHANGED'} end
redis.call('DEL', KEYS[1])
finish('-')
return {'OK'}
