-- End a round, once.
--
-- KEYS  1 round  2 ranges  3 proofs  4 cover_starts  5 cover_stops  6 returned  7 abandoned
--       8 active (set of all active rounds)  9 sessions (hash): see the other scripts
-- ARGV  1 round id  2 new state  3 reason  4 ms to keep it  5 "1": only if its deadline is over
-- Returns the round's state after the call, or nothing if there is no such round.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  -- Its hash expired before anybody closed it: leave nothing of it behind.
  redis.call('SREM', KEYS[8], ARGV[1])
  redis.call('HDEL', KEYS[9], ARGV[1])
  redis.call('DEL', unpack(KEYS, 1, 7))
  return false
end
if state ~= 'active' then return state end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local over = now_ms >= tonumber(redis.call('HGET', KEYS[1], 'deadline_ms'))
if ARGV[5] == '1' and not over then return state end
-- Whoever stops a round after its deadline finds it expired, as every other reader would.
local new_state = over and 'expired' or ARGV[2]
redis.call('HSET', KEYS[1], 'state', new_state, 'ended_ms', string.format('%.0f', now_ms),
  'reason', over and '' or ARGV[3])
redis.call('SREM', KEYS[8], ARGV[1])
redis.call('HDEL', KEYS[9], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[6])
for i = 1, 7 do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
return new_state
