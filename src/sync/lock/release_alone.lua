#!lua flags=allow-oom
-- Purpose: give up a lock while no waiter is in its queue. With one key it costs the server much
--   less than release.lua, which the caller runs when this one answers OTHERWISE.
-- KEYS: 1 lock
-- ARGV: 1 the value of the lock behind the fence while no waiter is in the queue: '2 id '
-- Returns: RELEASED | OTHERWISE
-- Retry: unsafe - harmless, but a second run answers OTHERWISE, so the caller decides what that means
if redis.call('GETRANGE', KEYS[1], '17', '51') ~= ARGV[1] then return 'OTHERWISE' end
redis.call('DEL', KEYS[1])
return 'RELEASED'
