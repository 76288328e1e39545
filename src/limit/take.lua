#!lua
-- Purpose: take from a limit that goes by GCRA, if its capacity allows. A refusal takes nothing.
-- KEYS: 1 limit
-- ARGV: 1 cost (ns)
-- ARGV: 2 capacity (ns)
-- ARGV: 3 how long the caller would wait (ns), 0 to take only what is there now
-- Returns: {ALLOWED, level with the cost (ns), now (us)} | {REFUSED, level (ns), now (us)} | {WRONGTYPE}
-- Retry: unsafe - a second run takes again
local cost, capacity, wait = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local level, stepped = level_of(1)
if not level then return stepped end
if level + cost <= capacity + wait then
  write_level(1, level + cost)
  return {'ALLOWED', level + cost, now}
end
if stepped then write_level(1, level) end
return {'REFUSED', level, now}
