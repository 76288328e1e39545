-- The holders of a semaphore: the prelude of its scripts between `queue.lua` and `grants.lua`.
-- KEYS: 1 the semaphore, a hash: id to 'deadline fence process weight limit metadata', and 'used': the
--   permits of all ids, 'fence': the last one, 'next': a look at all holders is not worthwhile before (ms).
--   Its TTL reaches at least to the end of the last lease.
-- A detail is 'weight limit metadata'. Each request is granted by its own limit.
local MOST_FIELDS = 10003 -- 10,000 holders, and three fields of the semaphore itself.
local state = {}

local function parts(detail)
  local weight, limit = string.match(detail, '^(%d+) (%d+) ')
  return tonumber(weight), tonumber(limit)
end

-- Returns the deadline, the fence, the weight and the limit of a holder, nil if there is none of that id.
local function holder(id)
  local deadline, fence, detail = string.match(redis.call('HGET', KEYS[1], id) or '', '^(%d+) (%d+) %x+ (%d+ %d+ .*)$')
  if deadline then return tonumber(deadline), fence, parts(detail) end
end

-- Takes out the holders whose leases have ended, and counts the others. It reads all holders, but only when a
-- lease may have ended, and with 10,000 holders once a second at most.
local function sweep()
  local fields, soonest, used = redis.call('HGETALL', KEYS[1]), nil, 0
  for index = 1, #fields, 2 do
    local deadline, weight = string.match(fields[index + 1], '^(%d+) %d+ %x+ (%d+) ')
    if deadline and tonumber(deadline) <= now_ms then
      redis.call('HDEL', KEYS[1], fields[index])
    elseif deadline then
      soonest, used = math.min(soonest or tonumber(deadline), tonumber(deadline)), used + tonumber(weight)
    end
  end
  local spaced = now_ms + math.floor(#fields / 20)
  state.used, state.next, state.changed = used, soonest and math.max(soonest, spaced) or 0, true
end

function kind.read()
  local read = redis.pcall('HMGET', KEYS[1], 'used', 'fence', 'next')
  local refused = refusal(read)
  if refused then return refused == FOREIGN and {'WRONGTYPE', 'holder'} or refused end
  state = {used = tonumber(read[1] or '0'), fence = tonumber(read[2] or '0'), next = tonumber(read[3] or '0')}
  local foreign = not read[1] and redis.call('EXISTS', KEYS[1]) == 1
  if foreign or not (state.used and state.fence and state.next) then return {'WRONGTYPE', 'holder'} end
  return nil, state.fence
end

function kind.fence_of(id, detail)
  local deadline, fence, weight, limit = holder(id)
  if not deadline then return nil end
  local asked, most = parts(detail)
  if deadline > now_ms and weight >= asked and limit <= most then return fence end
  -- It is over, or asks for more than it has, or was granted under a larger limit: as if it had nothing.
  kind.drop(id)
end

function kind.fits(detail)
  if not detail then return true end
  local weight, limit = parts(detail)
  local function free() return state.used + weight <= limit and redis.call('HLEN', KEYS[1]) < MOST_FIELDS end
  if not free() and state.next <= now_ms then sweep() end
  return free()
end

function kind.grant(fence, id, _, lease, process, detail)
  local _, _, had = holder(id)
  local deadline = now_ms + lease
  state.used = state.used - (had or 0) + parts(detail)
  state.next = state.used == parts(detail) and deadline or math.min(state.next, deadline)
  state.fence, state.changed = math.max(state.fence, tonumber(fence)), false
  local text = table.concat({string.format('%.0f', deadline), fence, process, detail}, ' ')
  redis.call('HSET', KEYS[1], id, text, 'used', string.format('%.0f', state.used),
    'fence', string.format('%.0f', state.fence), 'next', string.format('%.0f', state.next))
  if redis.call('PTTL', KEYS[1]) < tonumber(lease) then redis.call('PEXPIRE', KEYS[1], lease) end
end

function kind.drop(id)
  local deadline, _, weight = holder(id)
  if not deadline then return false end
  redis.call('HDEL', KEYS[1], id)
  state.used, state.changed = state.used - weight, true
  return deadline > now_ms
end

function kind.settle()
  if state.used == 0 then
    redis.call('DEL', KEYS[1])
  elseif state.changed then
    redis.call('HSET', KEYS[1], 'used', string.format('%.0f', state.used), 'next', string.format('%.0f', state.next))
  end
end

function kind.queued() end -- Nothing is noted for a release, which always looks.

-- No seal: any holder may hand over, so a waiter asks again once a push says that it has a grant.
function kind.busy()
  local remaining = state.used == 0 and -1 or math.max(1, state.next - now_ms)
  return {'BUSY', remaining, string.format('%.0f', last), string.format('%.0f', state.used), ''}
end
