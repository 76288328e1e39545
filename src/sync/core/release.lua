#!lua flags=allow-oom
-- Purpose: give up the lock, or the position in the queue; hand a lock given up to the next waiter.
-- KEYS: 1 lock
-- KEYS: 2 fence counter of the bucket
-- KEYS: 3 queue
-- ARGV: 1 the value of the lock behind the fence while no waiter is in the queue: '2 id '
-- ARGV: 2 the secret whose digest is the seal of the lock, as the proof for the next holder; ''
--   if the caller does not know of a grant
-- Returns: RELEASED | NOT_HELD | {WRONGTYPE, 'lock' if that is why} | {FORMAT, format of the lock}
-- Retry: unsafe - harmless, but a second run answers NOT_HELD, so the caller decides what that means
if redis.call('GETRANGE', KEYS[1], '17', '51') == ARGV[1] then
  redis.call('DEL', KEYS[1])
  return 'RELEASED'
end
local time = redis.call('TIME')
-- The prelude stands here.
local refused = unreadable()
if refused then return refused end
local mine = string.sub(ARGV[1], 3, 34)
local number = tonumber(redis.call('HGET', KEYS[3], mine) or nil)
if number then vacate(number, mine) end
if held.id and held.id ~= mine then return 'NOT_HELD' end
local had = held.id
held = {}
hand_over(nil, had and ARGV[2])
if had and not held.id then redis.call('DEL', KEYS[1]) end
return had and 'RELEASED' or 'NOT_HELD'
