#!lua flags=allow-cross-slot-keys
-- Purpose: stores a value that the caller has, and ends a load under way, which may have begun
--   earlier.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 entry, its deadlines still zero
-- ARGV: 2 ttl, ms
-- ARGV: 3 stale window, ms, or '' for a bare value
-- Returns: {'OK'} or {'WRONGTYPE'}
-- Retry: unsafe - a second run could overwrite what another caller set after the first
if foreign() then return {'WRONGTYPE'} end
store(ARGV[1], ARGV[2], ARGV[3])
finish('+')
return {'OK'}
