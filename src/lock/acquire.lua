#!lua
-- Purpose: take the lock if it is free, else take or keep a place in the queue.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- KEYS: 4 waiters
-- ARGV: 1 owner
-- ARGV: 2 lease (ms)
-- ARGV: 3 wake channel of the caller's process
-- ARGV: 4 metadata
-- ARGV: 5 how long a place in the queue lives without being kept (ms), 0 to take none
-- ARGV: 6 claim: the lease that a hand-over grants at first (ms)
-- Returns: {GRANTED, fence} | {BUSY, remaining lease (ms, -1 if none), fence, metadata of the holder} | {WRONGTYPE}
-- Retry: safe - an owner that already holds is answered with its fence, a place is taken once
if foreign() then return {'WRONGTYPE'} end
local owner, patience = ARGV[1], tonumber(ARGV[5])
local holder = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'meta')

if holder[1] == owner then
  redis.call('HSET', KEYS[1], 'meta', ARGV[4])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {'GRANTED', holder[2]}
end

if patience > 0 then
  redis.call('ZADD', KEYS[3], 'NX', now, owner)
  local deadline = math.floor(now / 1000) + patience
  redis.call('HSET', KEYS[4], owner, cmsgpack.pack({deadline, ARGV[6], ARGV[3], ARGV[4]}))
  redis.call('PEXPIRE', KEYS[3], patience)
  redis.call('PEXPIRE', KEYS[4], patience)
end

if not holder[1] then
  local taker, fence = hand_over(owner)
  if not taker then
    return {'GRANTED', grant(owner, next_fence(), ARGV[2], ARGV[3], ARGV[4])}
  end
  if taker == owner then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return {'GRANTED', fence}
  end
  holder = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'meta')
end
return {'BUSY', redis.call('PTTL', KEYS[1]), holder[2] or '', holder[3] or ''}
