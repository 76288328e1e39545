#!lua
-- Purpose: add to a counter within a range, with a TTL for one that has none.
-- KEYS: 1 counter
-- ARGV: 1 delta (decimal)
-- ARGV: 2 least value (decimal)
-- ARGV: 3 greatest value (decimal)
-- ARGV: 4 what to do at the ends: reject or saturate
-- ARGV: 5 TTL of a counter that is created or has none (ms), 0 for none
-- Returns: {ADDED, value, applied, remaining TTL (ms, -1 none, -2 absent)} | {OVERFLOW}
--   | {OUT_OF_RANGE, value} | {WRONGTYPE} | {NOT_A_NUMBER}
-- Retry: unsafe - a second run adds again
return add()
