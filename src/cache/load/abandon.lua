#!lua flags=allow-oom,allow-cross-slot-keys
-- Purpose: gives up the lease of the leader, so that a waiter may lead.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 token of the leader
-- ARGV: 2 fence of the lease, or 0 when the leader does not know it
-- Returns: {'OK'}, or {'LOST'} when that lease was gone, or {'WRONGTYPE'}
-- Retry: safe - a second run finds no lease, or another leader's, and leaves it alone
if foreign() then return {'WRONGTYPE'} end
local held = redis.call('HMGET', KEYS[2], 'token', 'fence')
if held[1] ~= ARGV[1] then return {'LOST'} end
-- With another fence, a late copy of the leader's request has taken the lease again.
finish('-')
return {held[2] == ARGV[2] and 'OK' or 'LOST'}
