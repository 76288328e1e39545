#!lua flags=allow-oom,allow-cross-slot-keys
-- Purpose: removes several values, and ends loads of them that are under way.
-- KEYS: 1.. per entry: value, load lease
-- ARGV: none
-- Returns: {'OK', then per entry 1 removed, 0 there was none, or -1 something else is at its keys}
-- Retry: safe - a second run removes what is gone, or at worst costs one more load
local answer, gone = {'OK'}, {}
for at = 1, #KEYS, 2 do
  if gone[KEYS[at]] then
    -- Given twice: while its slot moves, what has gone cannot be asked for.
    answer[#answer + 1] = 0
  else
    local value, lease = redis.call('TYPE', KEYS[at]).ok, redis.call('TYPE', KEYS[at + 1]).ok
    if (value ~= 'none' and value ~= 'string') or (lease ~= 'none' and lease ~= 'hash') then
      answer[#answer + 1] = -1
    else
      local fields = lease == 'hash' and redis.call('HKEYS', KEYS[at + 1]) or {}
      redis.call('UNLINK', KEYS[at], KEYS[at + 1])
      gone[KEYS[at]] = true
      for _, field in ipairs(fields) do
        -- A process that waits for the load asks for the lease itself.
        if string.sub(field, 1, 2) == 'w:' then redis.pcall('SPUBLISH', string.sub(field, 3), '-' .. KEYS[at]) end
      end
      answer[#answer + 1] = value == 'string' and 1 or 0
    end
  end
end
return answer
