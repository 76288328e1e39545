#!lua flags=allow-cross-slot-keys
-- Purpose: stores a large value, which was uploaded under a key of its own, as `set` and `commit`
--   store theirs.
-- KEYS: 1 value
-- KEYS: 2 load lease
-- KEYS: 3 upload
-- ARGV: 1 ttl, ms, or '' to keep that of the entry
-- ARGV: 2 first 36 bytes of the entry, its deadlines still zero
-- ARGV: 3 its length in bytes
-- ARGV: 4 token of the leader, or '' when the caller has the value
-- ARGV: 5 fence of the lease, or ''
-- ARGV: 6 first 36 bytes of the entry that must be there, '' if none may be, '*' if any may be
-- ARGV: 7 stale window, ms, or '' for a bare value
-- Returns: {'STORED'} or {'REFUSED'} or {'CHANGED'} or {'GONE'} when there is no upload, or {'WRONGTYPE'}
-- Retry: safe - the first run takes the upload away, so a second stores nothing; it meets the same
--   entry, except for the deadlines, or answers GONE, which does not say whether the first has run
if foreign() then return {'WRONGTYPE'} end
local held = redis.call('HMGET', KEYS[2], 'token', 'fence')
local leads = held[1] == ARGV[4] and held[2] == ARGV[5]
if (leads or ARGV[4] == '') and redis.call('STRLEN', KEYS[3]) == tonumber(ARGV[3]) then
  -- The upload stays until its TTL ends, so that a second run judges again.
  if ARGV[6] ~= '*' and not still(ARGV[6]) then return {'CHANGED'} end
  local ttl, stale, ends = ARGV[1], ARGV[7], nil
  if ttl == '' then
    -- Something else may have taken the TTL of the entry away: as good as for ever is 100 years.
    local left = redis.call('PTTL', KEYS[1])
    ttl, stale = left < 0 and '3155760000000' or math.max(left, 1), 0
    ends = redis.call('GETRANGE', KEYS[1], 8, 19)
  end
  if stale == '' then
    stale = 0
  else
    redis.call('SETRANGE', KEYS[3], 8, ends or deadlines(server_ms() + ttl, stale))
  end
  redis.call('PEXPIRE', KEYS[3], string.format('%.0f', ttl + stale))
  redis.call('RENAME', KEYS[3], KEYS[1])
  finish('+')
  return {'STORED'}
end
if held[1] == ARGV[4] and not leads then
  -- The lease had ended; a late copy of the leader's request has taken it again.
  finish('-')
end
redis.call('DEL', KEYS[3])
-- The head of a bare value does not identify it.
if ARGV[7] ~= '' and redis.call('STRLEN', KEYS[1]) == tonumber(ARGV[3]) and still(ARGV[2]) then
  return {'STORED'}
end
return {(leads or ARGV[4] == '') and 'GONE' or 'REFUSED'}
