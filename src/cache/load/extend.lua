#!lua flags=allow-cross-slot-keys
-- Purpose: makes the entry live on whose value the leader has found to be still right, unless the
--   value was removed or set, or the lease taken over, meanwhile.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- ARGV: 1 token of the leader
-- ARGV: 2 fence of the lease
-- ARGV: 3 first 36 bytes of the entry
-- ARGV: 4 ttl, ms
-- ARGV: 5 stale window, ms
-- Returns: {'STORED'} or {'REFUSED'} or {'GONE'} when the lease is held and the entry is not there, or {'WRONGTYPE'}
-- Retry: safe - a second run finds its lease gone and answers REFUSED, which proves nothing and
--   costs a read
if foreign() then return {'WRONGTYPE'} end
local held = redis.call('HMGET', KEYS[2], 'token', 'fence')
if held[1] ~= ARGV[1] then return {'REFUSED'} end
if held[2] ~= ARGV[2] then
  -- The lease had ended; a late copy of the leader's request has taken it again.
  finish('-')
  return {'REFUSED'}
end
if ARGV[3] == '' or not still(ARGV[3]) then return {'GONE'} end
redis.call('SETRANGE', KEYS[1], 8, deadlines(server_ms() + ARGV[4], ARGV[5]))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[4] + ARGV[5]))
finish('+')
return {'STORED'}
