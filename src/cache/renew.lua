#!lua flags=allow-oom
-- Purpose: the leader is still loading; moves the moment at which others may take over.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 token of the leader
-- ARGV: 2 takeover, ms
-- Returns: {'OK'} or {'LOST'} or {'WRONGTYPE'}
-- Retry: safe because a second run moves it to about the same moment
if foreign() then return {'WRONGTYPE'} end
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then return {'LOST'} end
local now = redis.call('TIME')
local takeover = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2]
redis.call('HSET', KEYS[2], 'takeover', string.format('%.0f', takeover))
return {'OK'}
