#!lua flags=allow-oom
-- Purpose: removes those of several values that carry a tag with another generation than the
--   present one: they are invalid. A fresh value that has taken the place of one stays.
-- KEYS: 1.. values
-- ARGV: 1 id of the tag, 16 bytes
-- ARGV: 2 its generation, 8 bytes, or empty if it has none
-- Returns: {'OK', then per value 1 removed or 0 left alone}
-- Retry: safe - a second run leaves alone what the first has left
local answer = {'OK'}
for at = 1, #KEYS do
  answer[at + 1] = 0
  local head = ''
  if redis.call('TYPE', KEYS[at]).ok == 'string' then
    head = redis.call('GETRANGE', KEYS[at], 0, 36 + 24 * 255 - 1)
  end
  -- An entry of another version has its tags elsewhere, perhaps.
  local tags = string.byte(head, 1) == 2 and string.byte(head, 4) or 0
  for stamp = 37, 36 + 24 * tags, 24 do
    if string.sub(head, stamp, stamp + 15) == ARGV[1] and string.sub(head, stamp + 16, stamp + 23) ~= ARGV[2] then
      redis.call('UNLINK', KEYS[at])
      answer[at + 1] = 1
      break
    end
  end
end
return answer
