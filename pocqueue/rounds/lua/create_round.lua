-- Make a round and wake the scheduler, in one step; a session only if there is room for it.
--
-- KEYS  1 round (hash)  2 rounds (zset of all kept rounds by creation ms)  3 active (set)
--       4 wake (list with at most one token, popped by the leading scheduler)
--       5 callbacks (set of rounds whose proofs are still to be posted somewhere)
--       6 sessions (hash: id -> "deadline_ms customer" of each session that nobody closed yet; for ever)
-- ARGV  1 round id  2 specification (JSON)  3 window in ms  4 how many nonces to search at most, or ""
--       5 ms to keep a round after its end  6 "1" if it has a callback URL
--       7 customer whose session it is, or ""  8 most sessions in all  9 most of this customer;
--       8 and 9 may be "" for no limit  10 first nonce index to search  11 the one before which to stop, or ""
-- Returns {"made", created_ms, deadline_ms}; or {"known"} if there is a round of this id already:
-- asked twice (a lost reply), it must not put the counters of a running round back to zero; or
-- {"full", the limit that is reached, ms until the first session that counts against it ends}.
if redis.call('EXISTS', KEYS[1]) == 1 then return {'known'} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local text = function(number) return string.format('%.0f', number) end
local deadline_ms = now_ms + tonumber(ARGV[3])
if ARGV[7] ~= '' then
  -- Counted by deadline and not by who closed what: right even if no scheduler lives.
  local gone, all, own, first_of_all, first_of_own = {}, 0, 0, math.huge, math.huge
  local sessions = redis.call('HGETALL', KEYS[6])
  for i = 1, #sessions, 2 do
    local ends, customer = string.match(sessions[i + 1], '^(%d+) (.*)$')
    ends = tonumber(ends)
    if ends <= now_ms then
      gone[#gone + 1] = sessions[i]
    else
      all, first_of_all = all + 1, math.min(first_of_all, ends)
      if customer == ARGV[7] then own, first_of_own = own + 1, math.min(first_of_own, ends) end
    end
  end
  for _, id in ipairs(gone) do redis.call('HDEL', KEYS[6], id) end
  if ARGV[9] ~= '' and own >= tonumber(ARGV[9]) then
    return {'full', ARGV[9], text(first_of_own - now_ms)}
  end
  if ARGV[8] ~= '' and all >= tonumber(ARGV[8]) then
    return {'full', ARGV[8], text(first_of_all - now_ms)}
  end
  redis.call('HSET', KEYS[6], ARGV[1], text(deadline_ms) .. ' ' .. ARGV[7])
end
redis.call('HSET', KEYS[1],
  'spec', ARGV[2], 'state', 'active', 'reason', '', 'created_ms', text(now_ms),
  'deadline_ms', text(deadline_ms), 'ended_ms', '0', 'next_index', ARGV[10], 'max_nonces', ARGV[4], 'stop_index', ARGV[11],
  'checked', '0', 'valid', '0', 'batches', '0', 'nonfinite', '0', 'late_batches', '0',
  'abandoned', '0', 'ranges_made', '0', 'ranges_returned', '0', 'vtime', '')
-- It expires by itself as well, should every scheduler be gone.
redis.call('PEXPIREAT', KEYS[1], text(deadline_ms + tonumber(ARGV[5])))
redis.call('ZADD', KEYS[2], text(now_ms), ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('LPUSH', KEYS[4], '1')
redis.call('LTRIM', KEYS[4], 0, 0)
if ARGV[6] == '1' then redis.call('SADD', KEYS[5], ARGV[1]) end
return {'made', text(now_ms), text(deadline_ms)}
