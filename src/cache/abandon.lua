#!lua flags=allow-oom,allow-cross-slot-keys
-- Purpose: the leader gives up; whoever waits may lead.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 token of the leader
-- Returns: {'OK'} or {'LOST'} or {'WRONGTYPE'}
-- Retry: safe - a second run finds the lease gone or another's and leaves it alone
if foreign() then return {'WRONGTYPE'} end
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then return {'LOST'} end
finish('-')
return {'OK'}
