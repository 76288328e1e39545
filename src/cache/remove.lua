#!lua flags=allow-oom,allow-cross-slot-keys
-- Purpose: removes a value, and ends a load under way, which may have begun before the removal.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: none
-- Returns: {'OK'} or {'WRONGTYPE'}
-- Retry: safe - a second run removes what is gone, or at worst costs one more load
if foreign() then return {'WRONGTYPE'} end
redis.call('DEL', KEYS[1])
finish('-')
return {'OK'}
