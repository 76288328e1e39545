#!lua
-- Purpose: notes in the index of a tag which entries may carry it, and until when, and forgets some
--   whose end has come. Each note raises the score, so that it is seen that a name was noted again.
-- KEYS: 1 index
-- ARGV: 1 when the entries end at the latest, ms
-- ARGV: 2 'for' if that counts from now, 'until' if it is a moment of the server's clock
-- ARGV: 3.. names of entries
-- Returns: {'OK'} or {'WRONGTYPE'}
-- Retry: safe - a second run raises the scores once more
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and kind ~= 'zset' then return {'WRONGTYPE'} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = tonumber(ARGV[1])
if ARGV[2] == 'for' then ends = now + ends end
for at = 3, #ARGV do
  local known = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[at]) or 0)
  redis.call('ZADD', KEYS[1], string.format('%.0f', math.max(ends, known + 1)), ARGV[at])
end
-- Behind what was added: while its slot moves, an index that was empty for a moment cannot come
-- back.
local ended = redis.call('ZRANGE', KEYS[1], '-inf', string.format('%.0f', now), 'BYSCORE', 'LIMIT', 0, 100 + #ARGV)
if #ended > 0 and ends > now then redis.call('ZREM', KEYS[1], unpack(ended)) end
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', tonumber(last)))
return {'OK'}
