#!lua flags=allow-oom
-- Purpose: makes a tag outlive an entry that carries it and gets another end. A TTL is only ever
--   extended, and seldom: as in `ensure.lua`, to twice what is needed. A tag that is missing, or
--   never ends, stays as it is.
-- KEYS: 1 tag
-- ARGV: 1 ms that the tag must still live, or the moment until which it must, in ms since 1970
-- ARGV: 2 'for' or 'until'
-- Returns: {'OK'} or {'WRONGTYPE'}
-- Retry: safe - a second run finds that the tag lives long enough
if foreign() then return {'WRONGTYPE'} end
local need = tonumber(ARGV[1])
if ARGV[2] == 'until' then need = need - server_ms() end
local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left < need then
  -- Seldom: the server pushes each change of a tag to all processes that hold it near.
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', need * 2))
end
return {'OK'}
