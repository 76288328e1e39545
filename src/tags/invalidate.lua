#!lua flags=allow-oom
-- Purpose: gives a tag a new generation, which invalidates every entry stamped with an older one.
--   A TTL is only ever extended. A tag without a key has no generation, so no entry that carries
--   it is valid, and none becomes valid. So nothing is written: otherwise names that no entry
--   carries could fill a server.
-- KEYS: 1 tag
-- ARGV: 1 16 random bytes
-- ARGV: 2 the tag behind its generation: mode, hold-until, readable name
-- ARGV: 3 ms that the tag must still live
-- Returns: {'OK'} or {'WRONGTYPE'}
-- Retry: safe - a second run writes one more new generation, which costs only loads
if foreign() then return {'WRONGTYPE'} end
local value = redis.call('GET', KEYS[1])
if not value then return {'OK'} end
local left = math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[3]))
redis.call('SET', KEYS[1], generation(ARGV[1] .. value) .. ARGV[2], 'PX', string.format('%.0f', left))
return {'OK'}
