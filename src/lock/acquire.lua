#!lua
-- Purpose: take the lock if it is free, else take or keep a place in the queue.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- KEYS: 4 waiters
-- ARGV: 1 prefix of the wake channels
-- ARGV: 2 owner
-- ARGV: 3 lease (ms)
-- ARGV: 4 process
-- ARGV: 5 metadata
-- ARGV: 6 how long a place in the queue lives without being kept (ms), 0 to take none
-- ARGV: 7 claim: the lease that a hand-over grants at first (ms)
-- ARGV: 8 1 if the process is to be told of a hand-over, 0 if it asks again so soon that it need not
-- Returns: {GRANTED, fence} | {BUSY, remaining lease (ms, -1 if none), fence, metadata of the holder} | {WRONGTYPE}
-- Retry: unsafe - a second run answers as the first, but a copy that arrives after the release
--   would take the lock for nobody: who gets no answer gives its owner up and asks as another
local mine, lease, process, meta, patience = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local owner, fence, _, its_meta = holder()
if type(owner) == 'table' then return owner end

if owner == mine then
  grant(mine, fence, lease, process, meta)
  return {'GRANTED', fence}
end

if not owner and redis.call('EXISTS', KEYS[3]) == 0 then
  fence = next_fence()
  if not fence then return FOREIGN end
  grant(mine, fence, lease, process, meta)
  return {'GRANTED', fence}
end

if foreign() then return FOREIGN end
if patience > 0 then
  redis.call('ZADD', KEYS[3], 'NX', now(), mine)
  local deadline = math.floor(now() / 1000) + patience
  redis.call('HSET', KEYS[4], mine, cmsgpack.pack({deadline, ARGV[7], process, meta, ARGV[8]}))
  redis.call('PEXPIRE', KEYS[3], patience)
  redis.call('PEXPIRE', KEYS[4], patience)
end

if not owner then
  owner, fence = hand_over(mine)
  if not owner then
    fence = next_fence()
    if not fence then return FOREIGN end
  end
  if not owner or owner == mine then
    grant(mine, fence, lease, process, meta)
    return {'GRANTED', fence}
  end
  its_meta = ''
end
return {'BUSY', redis.call('PTTL', KEYS[1]), fence, its_meta}
