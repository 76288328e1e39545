#!lua flags=no-writes
-- Purpose: returns all that is stored of one cached value, as it is at one moment.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: none
-- Returns: {'OK', entry or '', ms that the key still lives (-2 no key, -1 no end), ms since the load lease was
--   granted, or -1 if nobody loads, ms until it may be taken over, record of a failed load or '',
--   ms that the record still lives, number of processes that wait, digest of the leader's token or
--   '', fence of the lease or '', time of the server in ms}
--   or {'WRONGTYPE'}
-- Retry: safe - reads only
if foreign() then return {'WRONGTYPE'} end
local entry = redis.call('GET', KEYS[1]) or ''
local held = redis.call('HMGET', KEYS[2], 'token', 'fence', 'takeover', 'failed')
local now = server_ms()
local loading, takeover, owner = -1, 0, ''
if held[1] then
  -- The token itself is a secret: with it, anybody could store a value.
  owner = string.sub(redis.sha1hex(held[1]), 1, 8)
  -- The fence is the time of the grant, in us, unless the clock has stepped back.
  loading = math.max(0, now - math.floor(held[2] / 1000))
  takeover = math.max(0, held[3] - now)
end
local waiting = 0
for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
  if string.sub(field, 1, 2) == 'w:' then waiting = waiting + 1 end
end
return {'OK', entry, redis.call('PTTL', KEYS[1]), loading, takeover, held[4] or '',
  redis.call('PTTL', KEYS[2]), waiting, owner, held[2] or '', now}
