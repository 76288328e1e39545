#!lua flags=no-writes
-- Purpose: tell how much of each of some limits is taken.
-- KEYS: 1.. limits
-- ARGV: 1.. per limit: gcra or window, a cost to be judged, limit, span (us); all but the first for windows only
-- Returns: {OK, then per limit: level (ns) or taken in the window, until the cost fits (us), until the window is
--   empty (us); 0 twice for gcra} | {WRONGTYPE}
-- Retry: safe - it only reads
local answer = {'OK'}
for at = 1, #KEYS do
  local kind, cost, most = ARGV[at * 4 - 3], tonumber(ARGV[at * 4 - 2]), tonumber(ARGV[at * 4 - 1])
  local span, taken, ready, reset = tonumber(ARGV[at * 4]), 0, 0, 0
  if kind == 'gcra' then
    local level, refused = level_of(at)
    if not level then return refused end
    taken = level
  else
    local log, sum = log_of(at, span)
    if not log then return sum end
    taken, ready, reset = sum, ready_at(log, sum, cost, most, span) - now, reset_of(log, span)
  end
  answer[#answer + 1] = taken
  answer[#answer + 1] = ready
  answer[#answer + 1] = reset
end
return answer
