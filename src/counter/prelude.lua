-- Shared by the scripts of the counter: exact arithmetic on i64. A Lua number is exact up to 2^53
-- only, so an i64 is a pair {high, low} that stands for high * 10^9 + low, 0 <= low < 10^9.
local BASE = 1000000000
local MIN, MAX = {-9223372037, 145224192}, {9223372036, 854775807}

local function less(a, b)
  return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
end

-- The pair of a decimal text; nil if it is not an i64 as Redis writes one.
local function parse(text)
  if text == '0' then return {0, 0} end
  local sign, digits = string.match(text, '^(%-?)([1-9]%d*)$')
  if not digits or #digits > 19 then return nil end
  local high, low = tonumber(string.sub(digits, 1, -10)) or 0, tonumber(string.sub(digits, -9))
  if sign == '-' then
    high = -high
    if low > 0 then high, low = high - 1, BASE - low end
  end
  local pair = {high, low}
  return not less(pair, MIN) and not less(MAX, pair) and pair or nil
end

local function text(pair)
  local high, low, sign = pair[1], pair[2], ''
  if high < 0 then
    sign = '-'
    if low > 0 then high, low = high + 1, BASE - low end
    high = -high
  end
  if high == 0 then return string.format('%s%d', sign, low) end
  return string.format('%s%d%09d', sign, high, low)
end

local function plus(a, b)
  local high, low = a[1] + b[1], a[2] + b[2]
  if low >= BASE then high, low = high + 1, low - BASE end
  return {high, low}
end

local function minus(a, b)
  local high, low = a[1] - b[1], a[2] - b[2]
  if low < 0 then high, low = high - 1, low + BASE end
  return {high, low}
end

-- What the script answers when reading a key failed: a status for another type, else the error
-- as it came, for example that the ACL user may not read.
local function refusal(failed)
  return string.find(failed.err, '^WRONGTYPE') and {'WRONGTYPE'} or failed
end

-- Reads the counter: its pair ({0, 0} if absent) and whether it exists; nil and what the script
-- answers if something else is in its place.
local function current()
  local value = redis.pcall('GET', KEYS[1])
  if not value then return {0, 0}, false end
  if type(value) ~= 'string' then return nil, refusal(value) end
  local pair = parse(value)
  if not pair then return nil, {'NOT_A_NUMBER'} end
  return pair, true
end

-- Adds ARGV[1] within ARGV[2] .. ARGV[3] (decimal texts), 'reject' or 'saturate' (ARGV[4]). With a TTL
-- (ARGV[5], ms, 0 for none) a counter that is created, or has none, lives for that long; also one
-- that refuses the add, or a full counter without an end would refuse for ever. Answers what the
-- script returns.
local function add()
  local before, exists = current()
  if not before then return exists end
  local delta, low, high = parse(ARGV[1]), parse(ARGV[2]), parse(ARGV[3])
  local after, refused = plus(before, delta), nil
  if ARGV[4] == 'saturate' then
    -- As far as the range allows; a counter outside of it is not pulled in against the delta.
    if delta[1] < 0 then
      local floor = less(before, low) and before or low
      if less(after, floor) then after = floor end
    else
      local ceiling = less(high, before) and before or high
      if less(ceiling, after) then after = ceiling end
    end
  elseif less(after, MIN) or less(MAX, after) then
    refused = {'OVERFLOW'}
  elseif less(after, low) or less(high, after) then
    refused = {'OUT_OF_RANGE', text(before)}
  end
  -- All reads come before the first write: an ACL that forbids one must change nothing.
  local ttl, left = ARGV[5], redis.call('PTTL', KEYS[1])
  local ends = ttl ~= '0' and left < 0
  if refused then
    if exists and ends then redis.call('PEXPIRE', KEYS[1], ttl) end
    return refused
  end
  local applied = minus(after, before)
  if not exists and applied[1] == 0 and applied[2] == 0 then
    return {'ADDED', text(after), text(applied), left}
  end
  if ends then
    redis.call('SET', KEYS[1], text(after), 'PX', ttl)
    return {'ADDED', text(after), text(applied), ttl}
  end
  redis.call('SET', KEYS[1], text(after), 'KEEPTTL')
  return {'ADDED', text(after), text(applied), exists and left or -1}
end
