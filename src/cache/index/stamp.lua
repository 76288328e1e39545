-- The generation, 8 bytes, that the value KEYS[at] has of a tag. `nil` if the value does not carry
-- the tag, or is none that the cache has written.
local function stamp(at, tag)
  if redis.call('TYPE', KEYS[at]).ok ~= 'string' then return nil end
  local head = redis.call('GETRANGE', KEYS[at], 0, 36 + 24 * 255 - 1)
  -- An entry of another version has its tags elsewhere, perhaps.
  local tags = string.byte(head, 1) == 2 and string.byte(head, 4) or 0
  for from = 37, 36 + 24 * tags, 24 do
    if string.sub(head, from, from + 15) == tag then return string.sub(head, from + 16, from + 23) end
  end
  return nil
end

