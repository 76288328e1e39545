#!lua
-- Purpose: take from a limit that goes by a sliding window, if it has room. A refusal takes nothing.
-- KEYS: 1 limit
-- ARGV: 1 cost
-- ARGV: 2 limit
-- ARGV: 3 span of the window (us)
-- ARGV: 4 slice of the window whose calls share an entry (us)
-- ARGV: 5 how long the caller would wait (us), at most the span, 0 to take only what is there now
-- Returns: {ALLOWED, taken in the window with the cost, until it is ready (us), until the window is empty (us),
--   time of the entry (us)} | {REFUSED, taken in the window, until the cost fits (us), until the window is
--   empty (us), now (us)} | {WRONGTYPE}
-- Retry: unsafe - a second run takes again
local cost, limit, span = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local slice, wait = tonumber(ARGV[4]), tonumber(ARGV[5])
local log, sum, stepped = log_of(1, span)
if not log then return sum end
local ready = ready_at(log, sum, cost, limit, span)
if ready - now <= wait then
  local moment
  log, moment = with(log, cost, ready, slice)
  write_log(1, log, sum + cost, span)
  return {'ALLOWED', sum + cost, ready - now, reset_of(log, span), moment}
end
if stepped then write_log(1, log, sum, span) end
return {'REFUSED', sum, ready - now, reset_of(log, span), now}
