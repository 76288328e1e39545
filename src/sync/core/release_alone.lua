#!lua flags=allow-oom
-- Purpose: give up a lock behind whose holder nobody queues. With one key it costs the server much
--   less than release.lua, which is asked when this one says so.
-- KEYS: 1 lock
-- ARGV: 1 what the lock says of a holder behind whom nobody queues: '2 id '
-- Returns: RELEASED | OTHERWISE
-- Retry: unsafe - harmless, but a second run answers OTHERWISE, so the caller decides what that means
if redis.call('GETRANGE', KEYS[1], '17', '51') ~= ARGV[1] then return 'OTHERWISE' end
redis.call('DEL', KEYS[1])
return 'RELEASED'
