#!lua
-- Purpose: take from several limits, if each of them allows. A refusal takes nothing of any.
-- KEYS: 1.. limits
-- ARGV: 1.. per limit: gcra or window, cost (ns, or a number), capacity (ns) or limit, span (us), slice (us)
-- Returns: {ALLOWED or REFUSED, then per limit: level (ns) or taken in the window, until the cost fits (us),
--   until the window is empty (us); 0 twice for gcra} | {WRONGTYPE}
-- Retry: unsafe - a second run takes again
local read, answer = {}, {'ALLOWED'}
for at = 1, #KEYS do
  local kind, cost, most = ARGV[at * 5 - 4], tonumber(ARGV[at * 5 - 3]), tonumber(ARGV[at * 5 - 2])
  local span, limit = tonumber(ARGV[at * 5 - 1]), {}
  if kind == 'gcra' then
    limit.level, limit.stepped = level_of(at)
    if not limit.level then return limit.stepped end
    if limit.level + cost > most then answer[1] = 'REFUSED' end
  else
    limit.log, limit.sum, limit.stepped = log_of(at, span)
    if not limit.log then return limit.sum end
    limit.ready = ready_at(limit.log, limit.sum, cost, most, span)
    if limit.ready > now then answer[1] = 'REFUSED' end
  end
  read[at] = limit
end
for at = 1, #KEYS do
  local limit, span = read[at], tonumber(ARGV[at * 5 - 1])
  local cost = answer[1] == 'ALLOWED' and tonumber(ARGV[at * 5 - 3]) or 0
  local writes = limit.stepped or cost > 0
  if limit.level then
    if writes then write_level(at, limit.level + cost) end
    answer[#answer + 1] = limit.level + cost
    answer[#answer + 1] = 0
    answer[#answer + 1] = 0
  else
    if cost > 0 then limit.log = with(limit.log, cost, now, tonumber(ARGV[at * 5])) end
    if writes then write_log(at, limit.log, limit.sum + cost, span) end
    answer[#answer + 1] = limit.sum + cost
    answer[#answer + 1] = limit.ready - now
    answer[#answer + 1] = reset_of(limit.log, span)
  end
end
return answer
