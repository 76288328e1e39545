#!lua
-- Purpose: returns a tag's generation, and gives the tag one if it has none, so that it outlives
--   an entry about to be stamped with it. A TTL is only ever extended.
-- KEYS: 1 tag
-- ARGV: 1 16 random bytes
-- ARGV: 2 readable name of the tag
-- ARGV: 3 ms that the tag lives from now on, if it lives for less than half of that
-- Returns: {'OK', tag value, ms that it still lives} or {'WRONGTYPE'}
-- Retry: safe - a second run finds what the first wrote and returns it
if foreign() then return {'WRONGTYPE'} end
local value = redis.call('GET', KEYS[1])
local left, life = redis.call('PTTL', KEYS[1]), tonumber(ARGV[3])
if not value or #value < 8 then
  value = generation(ARGV[1]) .. '\0' .. struct.pack('>I6', server_ms()) .. ARGV[2]
  redis.call('SET', KEYS[1], value, 'PX', ARGV[3])
  left = life
elseif left < life / 2 then
  -- Seldom: the server pushes each change of a tag to all processes that hold it near.
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  left = life
end
return {'OK', value, left}
