#!lua flags=allow-oom
-- Purpose: removes those of several values that still have the generation of a tag which was judged
--   to be over. No generation comes back, so what has it is invalid for good, however late this runs.
-- KEYS: 1.. values
-- ARGV: 1 id of the tag, 16 bytes
-- ARGV: 2.. per value the generation that is over, 8 bytes
-- Returns: {'OK', then per value 1 removed or 0 left alone}
-- Retry: safe - a second run leaves alone what the first has left
local answer = {'OK'}
for at = 1, #KEYS do
  answer[at + 1] = 0
  if stamp(at, ARGV[1]) == ARGV[at + 1] then
    redis.call('UNLINK', KEYS[at])
    answer[at + 1] = 1
  end
end
return answer
