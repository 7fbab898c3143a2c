-- Make a round and wake the scheduler, in one step.
--
-- KEYS  1 round (hash)  2 rounds (zset of all kept rounds by creation ms)  3 active (set)
--       4 wake (list with at most one token, popped by the leading scheduler)
--       5 callbacks (set of rounds whose proofs are still to be posted somewhere)
-- ARGV  1 round id  2 specification (JSON)  3 window in ms  4 max_nonces or ""
--       5 ms to keep a round after its end  6 "1" where it has a callback URL
-- Returns {created_ms, deadline_ms}, or nothing where there is a round of this id already: asked
-- twice (a lost reply), it must not put the counters of a running round back to zero.
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local text = function(number) return string.format('%.0f', number) end
local deadline_ms = now_ms + tonumber(ARGV[3])
redis.call('HSET', KEYS[1],
  'spec', ARGV[2], 'state', 'active', 'reason', '', 'created_ms', text(now_ms),
  'deadline_ms', text(deadline_ms), 'ended_ms', '0', 'next_index', '0', 'max_nonces', ARGV[4],
  'checked', '0', 'valid', '0', 'batches', '0', 'nonfinite', '0', 'late_batches', '0',
  'abandoned', '0', 'ranges_made', '0', 'ranges_returned', '0', 'vtime', '')
-- Should nobody be left to close it, it still goes by itself.
redis.call('PEXPIREAT', KEYS[1], text(deadline_ms + tonumber(ARGV[5])))
redis.call('ZADD', KEYS[2], text(now_ms), ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('LPUSH', KEYS[4], '1')
redis.call('LTRIM', KEYS[4], 0, 0)
if ARGV[6] == '1' then redis.call('SADD', KEYS[5], ARGV[1]) end
return {now_ms, deadline_ms}
