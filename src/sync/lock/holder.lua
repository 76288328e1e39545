-- The holder of a lock: the prelude of its scripts between `queue.lua` and `grants.lua`.
-- KEYS: 1 the lock, a string: 'fence 2 id seal process metadata'. Its TTL is the lease, 2 is the format.
--   The blank behind the id is a '+' once a waiter queues, so that a release need not look.
local held = {}

function kind.read()
  local lock = redis.pcall('GET', KEYS[1])
  local refused = refusal(lock)
  if refused then return refused end
  if lock then
    local format = string.match(lock, '^%d+ (%d+) ') or string.find(lock, '^%x+ %d+ %x+ ') and '1'
    if format and format ~= '2' then return {'FORMAT', format} end
    held.fence, held.id, held.seal, held.process, held.meta = string.match(lock, '^(%d+) 2 (%x+)[ +](%x+) (%x+) (.*)$')
    if not held.id or #held.fence ~= 16 or #held.id ~= 32 then return {'WRONGTYPE', 'holder'} end
  end
  return nil, tonumber(held.fence or 0)
end

function kind.fence_of(id)
  return held.id == id and held.fence
end

function kind.fits()
  return not held.id
end

function kind.grant(fence, id, seal, lease, process, meta)
  seal = seal or held.seal
  local queued = queue.there and '+' or ' '
  redis.call('SET', KEYS[1], fence .. ' 2 ' .. id .. queued .. seal .. ' ' .. process .. ' ' .. meta, 'PX', lease)
  held = {fence = fence, id = id, seal = seal, process = process, meta = meta}
end

function kind.drop(id)
  if held.id ~= id then return false end
  held = {}
  return true
end

function kind.settle()
  if not held.id then redis.call('DEL', KEYS[1]) end
end

function kind.queued()
  if held.id then redis.call('SETRANGE', KEYS[1], 51, '+') end
end

-- The last word is the seal of the owner that hands over to the caller: the next waiter ahead, or the
-- holder if surely none is ahead.
function kind.busy(number)
  local ahead, least = nil, math.max(queue.head, (number or 0) - 8)
  for before = (number or 0) - 1, least, -1 do
    ahead = ahead or (place(before) or {}).id
  end
  ahead = ahead or least == queue.head and held.seal or ''
  return {'BUSY', redis.call('PTTL', KEYS[1]), held.fence, held.meta, ahead}
end
