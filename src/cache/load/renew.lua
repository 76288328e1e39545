#!lua flags=allow-oom
-- Purpose: moves the moment at which others may take over, while the leader is still loading.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 token of the leader
-- ARGV: 2 takeover, ms
-- ARGV: 3 fence of the lease
-- Returns: {'OK'} or {'LOST'} or {'WRONGTYPE'}
-- Retry: safe - a second run moves it to about the same moment
if foreign() then return {'WRONGTYPE'} end
local held = redis.call('HMGET', KEYS[2], 'token', 'fence')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[3] then return {'LOST'} end
local now = redis.call('TIME')
local takeover = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2]
redis.call('HSET', KEYS[2], 'takeover', string.format('%.0f', takeover))
return {'OK'}
