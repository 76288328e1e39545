#!lua flags=allow-oom
-- Purpose: changes how long the entry lives that the caller judged valid.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 first 36 bytes of the entry
-- ARGV: 2 ms
-- ARGV: 3 'for': so long from now; 'longer': the same, unless it lives longer already; 'until': until that
--   moment of the server's clock
-- Returns: {'OK'} or {'PAST'} when that moment is over, or {'CHANGED'} or {'WRONGTYPE'}
-- Retry: safe - a second run sets about the same end
if foreign() then return {'WRONGTYPE'} end
if not still(ARGV[1]) then return {'CHANGED'} end
local ttl = ARGV[2] - (ARGV[3] == 'until' and server_ms() or 0)
if ttl <= 0 then return {'PAST'} end
local ends = redis.call('GETRANGE', KEYS[1], 8, 19)
-- The entry keeps its stale window.
local stale = struct.unpack('>I6', string.sub(ends, 7)) - struct.unpack('>I6', ends)
local left = redis.call('PTTL', KEYS[1])
if ARGV[3] ~= 'longer' or (left >= 0 and left - stale < ttl) then
  redis.call('SETRANGE', KEYS[1], 8, deadlines(server_ms() + ttl, stale))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ttl + stale))
end
return {'OK'}
