#!lua flags=allow-oom
-- Purpose: gives a tag a new generation, which invalidates every entry stamped with an older one.
--   A TTL is only ever extended. A tag without a key has no generation, so no entry that carries
--   it is valid, and none becomes valid. So nothing is written: otherwise names that no entry
--   carries could fill a server. A hold must be found by later loads, and so it is written; and a
--   caller that waits for replicas needs a write to wait for.
-- KEYS: 1 tag
-- ARGV: 1 16 random bytes
-- ARGV: 2 readable name of the tag
-- ARGV: 3 ms that the tag must still live
-- ARGV: 4 ms for which loads are held back, or 0
-- ARGV: 5 'hard', or 'soft' if entries with a stale window may still be served stale
-- ARGV: 6 'make' if a tag without a key gets one, else 'skip'
-- Returns: {'OK'} or {'WRONGTYPE'}
-- Retry: safe - a second run writes one more new generation, which costs only loads
if foreign() then return {'WRONGTYPE'} end
local value = redis.call('GET', KEYS[1])
local hold = tonumber(ARGV[4])
if not value and hold == 0 and ARGV[6] == 'skip' then return {'OK'} end
value = value or ''
local now = server_ms()
local mode, since, replaced = 0, now + hold, ''
if #value >= 15 then
  local old = string.byte(value, 9)
  if old >= 128 then since = math.max(since, struct.unpack('>I6', string.sub(value, 10, 15))) end
  if ARGV[5] == 'soft' then
    replaced = string.sub(value, 16, 15 + 14 * (old % 16))
    replaced = replaced .. string.sub(value, 1, 8) .. struct.pack('>I6', now)
    replaced = string.sub(replaced, -8 * 14)
  end
end
if since > now then mode = 128 end
local left = math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[3]))
value = generation(ARGV[1] .. value) .. string.char(mode + #replaced / 14)
  .. struct.pack('>I6', since) .. replaced .. ARGV[2]
redis.call('SET', KEYS[1], value, 'PX', string.format('%.0f', left))
return {'OK'}
