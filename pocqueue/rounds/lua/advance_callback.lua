-- Note what a callback receiver took, or when to try again; only for the task that holds the lease.
--
-- KEYS  1 callback  hash of one round: cursor (of the last proof taken), delivered (nonces taken),
--                   lease (token of the task at work), lease_ms (when that lease ends), next_ms
--                   (not before), attempts (failures in a row), error; gone with the round
-- ARGV  1 token  2 cursor or ""  3 nonces taken  4 ms to extend the lease by; 0 gives it up
--       5 ms to wait before the next try  6 error or ""
-- Returns 1, or 0 if the lease is another task's by now.
if redis.call('HGET', KEYS[1], 'lease') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local text = function(number) return string.format('%.0f', number) end
-- Asked twice (a lost reply), the same cursor counts once.
if ARGV[2] ~= '' and ARGV[2] ~= redis.call('HGET', KEYS[1], 'cursor') then
  redis.call('HSET', KEYS[1], 'cursor', ARGV[2], 'attempts', '0', 'error', '')
  redis.call('HINCRBY', KEYS[1], 'delivered', ARGV[3])
end
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[1], 'error', ARGV[6])
  redis.call('HINCRBY', KEYS[1], 'attempts', 1)
end
local lease_ms = tonumber(ARGV[4])
redis.call('HSET', KEYS[1], 'next_ms', text(now_ms + tonumber(ARGV[5])),
  'lease_ms', lease_ms == 0 and '0' or text(now_ms + lease_ms))
if lease_ms == 0 then redis.call('HSET', KEYS[1], 'lease', '') end
return 1
