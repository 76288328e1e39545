#!lua flags=no-writes
-- Purpose: returns which generation of a tag each of several values has.
-- KEYS: 1.. values
-- ARGV: 1 id of the tag, 16 bytes
-- Returns: {'OK', then per value its generation, 8 bytes, or nil if it does not carry the tag}
-- Retry: safe - it only reads
local answer = {'OK'}
for at = 1, #KEYS do
  answer[at + 1] = stamp(at, ARGV[1]) or false
end
return answer
