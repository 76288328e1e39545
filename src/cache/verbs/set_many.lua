#!lua flags=allow-cross-slot-keys
-- Purpose: stores several values that the caller has, and ends loads of them that are under way.
-- KEYS: 1.. values, then their load leases in the same order
-- ARGV: 1.. per value: the first 8 bytes of the entry, the entry from byte 20 on, ttl (ms)
-- Returns: {'OK', then the number of each value that was not stored, since something else is at its keys}
-- Retry: unsafe - a second run could overwrite what another caller set after the first
local count, now, answer = #KEYS / 2, server_ms(), {'OK'}
-- Hardly ever is one of them being loaded: one command instead of three for each.
local loading = redis.call('EXISTS', unpack(KEYS, count + 1)) > 0
-- A key may be given twice: while its slot moves, a lease that has gone cannot be asked for.
local ended = {}
for at = 1, count do
  local lease = loading and not ended[KEYS[count + at]]
  if other(at, 'string') or lease and other(count + at, 'hash') then
    answer[#answer + 1] = at
  else
    local ttl = ARGV[3 * at]
    redis.call('SET', KEYS[at], ARGV[3 * at - 2] .. deadlines(now + ttl, 0) .. ARGV[3 * at - 1], 'PX', ttl)
    if lease then
      finish('+', at, count + at)
      ended[KEYS[count + at]] = true
    end
  end
end
return answer
