#!lua flags=allow-oom
-- Purpose: give back to a limit what was taken and not used, and never more than was taken.
-- KEYS: 1 limit
-- ARGV: 1 gcra or window
-- ARGV: 2 what is given back (ns for gcra, a number for a window)
-- ARGV: 3 span of the window (us)
-- ARGV: 4 when it was taken (us), 0 if that is not known
-- ARGV: 5 level with it (ns), for gcra
-- ARGV: 6 capacity (ns), for gcra
-- Returns: {OK} | {WRONGTYPE}
-- Retry: unsafe - a second run gives back again, and the limit would be passed
local amount, span, taken = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if ARGV[1] == 'gcra' then
  local level, refused = level_of(1)
  if not level then return refused end
  -- How much of the level, with all that was there before it, has not drained since it was taken.
  local undrained = tonumber(ARGV[5]) - math.max(now - taken, 0) * 1000
  if taken > 0 then amount = math.min(amount, math.max(undrained, 0)) end
  -- Above the capacity, turns are reserved. Those behind it were told when they come, and keep that: a new
  -- one in between would come together with them.
  if level > tonumber(ARGV[6]) and level ~= undrained then amount = 0 end
  write_level(1, math.max(level - amount, 0))
  return {'OK'}
end
local log, sum = log_of(1, span)
if not log then return sum end
if taken == 0 or taken > now - span then
  log, sum = without(log, sum, amount, taken)
  write_log(1, log, sum, span)
end
return {'OK'}
