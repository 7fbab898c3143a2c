-- Take a range back from a GPU: what is not counted yet goes to the front of the line.
--
-- KEYS  1 round (hash)  2 ranges (hash)  3 returned (list)  4 abandoned (list of "start stop"):
--       5 metrics (hash): see commit_batch.lua and assign_range.lua
-- ARGV  1 range id  2 "1" if the GPU failed on it, "0" if it was only handed back
--       3 most failures in a row before the rest of a range is abandoned
-- Returns {nonces that went back, verdict}; 0 if the range was not out any more or is abandoned.
--   verdict "hopeless"  abandoned, and the round never had a batch: nobody can do it
--           "settled"   abandoned, and with that all its nonces are counted or abandoned
--           ""          otherwise
local record = redis.call('HGET', KEYS[2], ARGV[1])
if not record then return {0, ''} end
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('HGET', KEYS[1], 'state') ~= 'active' then return {0, ''} end
local start, stop, done, queue, worker, attempts =
  string.match(record, '^(%d+) (%d+) (%d+) (%S+) (%S+) (%d+) (%d+)$')
attempts = tonumber(attempts) + tonumber(ARGV[2])
local left = tonumber(stop) - tonumber(done)
if attempts < tonumber(ARGV[3]) then
  redis.call('LPUSH', KEYS[3], done .. ' ' .. stop .. ' ' .. string.format('%d', attempts))
  redis.call('HINCRBY', KEYS[1], 'ranges_returned', 1)
  redis.call('HINCRBY', KEYS[5], 'ranges_returned', 1)
  return {left, ''}
end
redis.call('RPUSH', KEYS[4], done .. ' ' .. stop)
local abandoned = redis.call('HINCRBY', KEYS[1], 'abandoned', string.format('%.0f', left))
redis.call('HINCRBY', KEYS[5], 'abandoned', string.format('%.0f', left))
local round = redis.call('HMGET', KEYS[1], 'batches', 'checked', 'max_nonces')
if round[1] == '0' then return {0, 'hopeless'} end
if round[3] ~= '' and abandoned + tonumber(round[2]) >= tonumber(round[3]) then
  return {0, 'settled'}
end
return {0, ''}
