-- Shared by the scripts of limits that go by GCRA. KEYS[at] holds 'written level', both decimal: when it
-- was written (us), and the level then (ns): how long what was taken needs to drain. What is written +
-- level is the theoretical arrival time of GCRA. As two numbers it is exact in ns: both are below 2^53.

-- The level now, and whether the clock was set back since it was written; nil and what the script answers
-- if something else is in its place.
local function level_of(at)
  local value = redis.pcall('GET', KEYS[at])
  if not value then return 0, false end
  if type(value) ~= 'string' then return nil, refusal(value) end
  local written, level = string.match(value, '^(%d+) (%d+)$')
  if not written then return nil, {'WRONGTYPE'} end
  local passed = now - tonumber(written)
  -- A clock that was set back has said nothing of what has drained. A write lets it drain from now
  -- on.
  if passed < 0 then return tonumber(level), true end
  return math.max(tonumber(level) - passed * 1000, 0), false
end

local function write_level(at, level)
  if level <= 0 then return redis.call('DEL', KEYS[at]) end
  -- 1 ms more than it needs, so that it is never gone before it has drained.
  local ttl = string.format('%.0f', math.floor(level / 1000000) + 1)
  redis.call('SET', KEYS[at], string.format('%.0f %.0f', now, level), 'PX', ttl)
end
