#!lua flags=no-writes
-- Purpose: returns which generation of a tag each of several values has. A value that is being loaded
--   was noted already, and may carry the tag soon.
-- KEYS: 1.. per entry: value, load lease
-- ARGV: 1 id of the tag, 16 bytes
-- Returns: {'OK', then per entry the generation of its value, 8 bytes, or '' if the value does not carry
--   the tag and is being loaded, or nil}
-- Retry: safe - it only reads
local answer = {'OK'}
for at = 1, #KEYS, 2 do
  local stamped = stamp(at, ARGV[1])
  if not stamped and redis.call('EXISTS', KEYS[at + 1]) == 1 then stamped = '' end
  answer[#answer + 1] = stamped or false
end
return answer
