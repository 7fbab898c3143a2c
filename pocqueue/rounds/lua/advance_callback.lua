-- Note what a callback receiver took or refused, or when to try again; only for the task that holds the lease.
--
-- KEYS  1 callback  hash of one round: cursor (stream id of the last proof that was taken or put aside), delivered (nonces
--                   taken, or refused for good), aside (nonces put aside), aside_ms (when the first of these is
--                   tried again; 0: there are none), last_try (1: tried once more before the end), lease (token of the task at work), lease_ms (when that lease
--                   ends), next_ms (not before), attempts (failures in a row), error; gone with the round
--       2 refused   sorted set: "ENTRY REFUSALS NONCES" of each batch that is put aside, by when it is tried again
--                   in ms; gone with the round
-- ARGV  1 token  2 cursor or ""  3 ms to extend the lease by; 0 gives it up  4 ms to wait before the next try
--       5 error or ""  6 nonces taken, or refused for good  7 nonces put aside (below 0: they are no more)
--       8 member of `refused` to take out, or ""  9 member to put in, or ""  10 ms until that is tried again
-- Returns 1, or 0 if the lease is another task's by now.
if redis.call('HGET', KEYS[1], 'lease') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local text = function(number) return string.format('%.0f', number) end
-- Asked twice (a lost reply), the same cursor counts once, and so does what was put aside. It moves forward only.
local is_behind = function(one, other)
  local ms, seq = string.match(one, '^(%d+)%-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)%-(%d+)$')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms > other_ms or (ms == other_ms and tonumber(seq) > tonumber(other_seq))
end
local is_new = false
if ARGV[2] ~= '' and is_behind(ARGV[2], redis.call('HGET', KEYS[1], 'cursor') or '0-0') then
  redis.call('HSET', KEYS[1], 'cursor', ARGV[2], 'attempts', '0', 'error', '')
  is_new = true
elseif ARGV[8] ~= '' then
  is_new = redis.call('ZREM', KEYS[2], ARGV[8]) == 1
end
if is_new then
  redis.call('HINCRBY', KEYS[1], 'delivered', ARGV[6])
  if ARGV[7] ~= '0' or ARGV[8] ~= '' then
    if ARGV[9] ~= '' then
      redis.call('ZADD', KEYS[2], text(now_ms + tonumber(ARGV[10])), ARGV[9])
      redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
    end
    local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
    redis.call('HINCRBY', KEYS[1], 'aside', ARGV[7])
    redis.call('HSET', KEYS[1], 'aside_ms', first[2] and text(tonumber(first[2])) or '0')
  end
end
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], 'error', ARGV[5])
  redis.call('HINCRBY', KEYS[1], 'attempts', 1)
end
local lease_ms = tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'next_ms', text(now_ms + tonumber(ARGV[4])),
  'lease_ms', lease_ms == 0 and '0' or text(now_ms + lease_ms))
if lease_ms == 0 then redis.call('HSET', KEYS[1], 'lease', '') end
return 1
