#!lua
-- Purpose: grants the right to load a value, unless the value has changed since the caller judged
--   it, or another caller is loading it. The lease outlives its takeover deadline on purpose: at
--   commit, an absent or foreign lease means that the load was invalidated or superseded.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 token of the caller
-- ARGV: 2 the longest that the lease may live, ms
-- ARGV: 3 takeover, ms
-- ARGV: 4 first 36 bytes of the entry that the caller judged invalid, or '' when it found none; of a
--   bare value its length, a ':', and its first and last 36 bytes
-- ARGV: 5 wake channel of the caller's process, or '' when it has none
-- ARGV: 6 fence of the failed load whose record the caller judged invalid, or ''
-- ARGV: 7 'bare' when the value has no envelope
-- Returns: {'LEAD', fence, server time in ms, 1 in place of a leader that was silent} or {'CHANGED'} or
--   {'FAILED', fence, record of a failed load} or
--   {'BUSY', ms until takeover, 1 when the channel is noted, fence} or {'WRONGTYPE'}
-- Retry: safe - a caller that meets its own token is answered as the first time; a copy that
--   arrives after the lease has ended takes it with another fence, with which nothing is stored
if foreign() then return {'WRONGTYPE'} end
local seen = redis.call('GETRANGE', KEYS[1], 0, 35)
if ARGV[7] == 'bare' and redis.call('EXISTS', KEYS[1]) == 1 then
  local length = string.format('%.0f', redis.call('STRLEN', KEYS[1]))
  seen = length .. ':' .. seen .. redis.call('GETRANGE', KEYS[1], -36, -1)
end
if seen ~= '' and seen ~= ARGV[4] then return {'CHANGED'} end
local held = redis.call('HMGET', KEYS[2], 'token', 'fence', 'takeover', 'failed')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if held[1] == ARGV[1] then return {'LEAD', held[2], now, 0} end
if held[4] and held[2] ~= ARGV[6] then return {'FAILED', held[2], held[4]} end
local takeover = tonumber(held[3] or 0)
if takeover > now then
  local noted = 0
  if ARGV[5] ~= '' and redis.call('HLEN', KEYS[2]) < 1000 then
    redis.call('HSET', KEYS[2], 'w:' .. ARGV[5], '')
    noted = 1
  end
  return {'BUSY', takeover - now, noted, held[2]}
end
-- Never below the server's clock, so fences rise even if the lease before this one was lost.
local fence = math.max(tonumber(held[2] or 0) + 1, time[1] * 1000000 + time[2])
fence = string.format('%.0f', fence)
redis.call('HSET', KEYS[2], 'token', ARGV[1], 'fence', fence, 'takeover', string.format('%.0f', now + ARGV[3]))
-- Not ahead of it: while its slot moves, a key that has gone cannot come back.
if held[4] then redis.call('HDEL', KEYS[2], 'failed') end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return {'LEAD', fence, now, held[1] and 1 or 0}
