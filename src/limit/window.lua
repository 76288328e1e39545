-- Shared by the scripts of limits that go by a sliding window. KEYS[at] holds 10 digits: how much all
-- entries count, then the entries, oldest first: 16 digits, when (us), and 10 digits, how much. An entry
-- counts until its span has passed. Several calls in one slice of the window share an entry, which then
-- has the time of the last: so a call may count for longer than the span, and never for less.
local HEAD, ENTRY = 10, 26

local function when(log, from)
  return tonumber(string.sub(log, from, from + 15))
end

local function count(log, from)
  return tonumber(string.sub(log, from + 16, from + 25))
end

local function entry(moment, counted)
  return string.format('%016.0f%010.0f', moment, counted)
end

-- The entries that count, how much they count, and whether the clock was set back since they were
-- written; nil and what the script answers if something else is in their place.
local function log_of(at, span)
  local value = redis.pcall('GET', KEYS[at])
  if not value then return '', 0, false end
  if type(value) ~= 'string' then return nil, refusal(value) end
  local sum, from = tonumber(string.sub(value, 1, HEAD)), HEAD + 1
  if not sum or (#value - HEAD) % ENTRY ~= 0 then return nil, {'WRONGTYPE'} end
  -- No entry is further ahead than a span. After a step back of the clock, all of them count as made now.
  if #value > HEAD and when(value, #value - ENTRY + 1) > now + span then return entry(now, sum), sum, true end
  while from <= #value and when(value, from) <= now - span do
    sum, from = sum - count(value, from), from + ENTRY
  end
  return string.sub(value, from), sum, false
end

-- When `cost` fits: now, or when enough entries do not count any more.
local function ready_at(log, sum, cost, limit, span)
  local ready, from = now, 1
  while sum + cost > limit and from <= #log do
    ready, sum, from = when(log, from) + span, sum - count(log, from), from + ENTRY
  end
  return ready
end

-- How long until no entry counts.
local function reset_of(log, span)
  if log == '' then return 0 end
  return math.max(when(log, #log - ENTRY + 1) + span - now, 0)
end

-- The entries with `cost` more at `moment`, and the time of the entry that has it.
local function with(log, cost, moment, slice)
  local from = #log - ENTRY + 1
  if from < 1 then return entry(moment, cost), moment end
  local last = when(log, from)
  -- In order: what is reserved ahead of this call makes it count for longer.
  moment = math.max(moment, last)
  if math.floor(last / slice) ~= math.floor(moment / slice) then return log .. entry(moment, cost), moment end
  return string.sub(log, 1, from - 1) .. entry(moment, count(log, from) + cost), moment
end

-- The entries with `amount` less, and how much they count then. What was taken at a known time is taken
-- out of the entry that has it. Else the oldest entries have less, since they end first in any case.
local function without(log, sum, amount, taken)
  local from = 1
  while from <= #log and amount > 0 do
    local moment, counted = when(log, from), count(log, from)
    local less = moment < taken and 0 or math.min(counted, amount)
    local left = counted > less and entry(moment, counted - less) or ''
    log = string.sub(log, 1, from - 1) .. left .. string.sub(log, from + ENTRY)
    sum, amount, from = sum - less, amount - less, from + #left
    if taken > 0 and less > 0 then amount = 0 end
  end
  return log, sum
end

local function write_log(at, log, sum, span)
  if log == '' then return redis.call('DEL', KEYS[at]) end
  local ttl = string.format('%.0f', math.floor(reset_of(log, span) / 1000) + 1)
  redis.call('SET', KEYS[at], string.format('%010.0f', sum) .. log, 'PX', ttl)
end
