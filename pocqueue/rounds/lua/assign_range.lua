-- Take the next run of nonce indices of a round and note which GPU has it.
--
-- KEYS  1 round (hash)  2 ranges (hash)  3 returned (list): see commit_batch.lua;
--       returned holds "start stop attempts", runs that came back from a GPU unfinished
-- ARGV  1 most nonces wanted  2 queue  3 worker id  4 least virtual time of the round before this
--       range  5 virtual time of one nonce
-- Returns {range id, start, stop}, or nothing if the round is not active, is over, or has none left.
if redis.call('HGET', KEYS[1], 'state') ~= 'active' then return false end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if now_ms >= tonumber(redis.call('HGET', KEYS[1], 'deadline_ms')) then return false end
local text = function(number) return string.format('%.0f', number) end
local want = tonumber(ARGV[1])
local start, stop, attempts
local span = redis.call('LPOP', KEYS[3])
if span then
  local a, b, n = string.match(span, '^(%d+) (%d+) (%d+)$')
  start, stop, attempts = tonumber(a), tonumber(b), n
  if stop - start > want then
    redis.call('LPUSH', KEYS[3], text(start + want) .. ' ' .. b .. ' ' .. n)
    stop = start + want
  end
else
  start = tonumber(redis.call('HGET', KEYS[1], 'next_index'))
  stop = start + want
  attempts = '0'
  -- A round of an earlier version has the one number only.
  local wanted = redis.call('HGET', KEYS[1], 'stop_index') or redis.call('HGET', KEYS[1], 'max_nonces')
  if wanted ~= '' and stop > tonumber(wanted) then stop = tonumber(wanted) end
  if stop <= start then return false end
  redis.call('HSET', KEYS[1], 'next_index', text(stop))
end
local id = redis.call('HINCRBY', KEYS[1], 'ranges_made', 1)
redis.call('HSET', KEYS[2], id, table.concat(
  {text(start), text(stop), text(start), ARGV[2], ARGV[3], attempts, text(now_ms)}, ' '))
local vtime = math.max(tonumber(redis.call('HGET', KEYS[1], 'vtime')) or 0, tonumber(ARGV[4]))
redis.call('HSET', KEYS[1], 'vtime',
  string.format('%.9f', vtime + (stop - start) * tonumber(ARGV[5])))
return {id, start, stop}
