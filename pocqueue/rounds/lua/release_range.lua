-- Take a range back from a GPU: what is not counted yet goes to the front of the line.
--
-- KEYS  1 round (hash)  2 ranges (hash)  3 returned (list)  4 abandoned (list of "start stop"):
--       see commit_batch.lua and assign_range.lua
-- ARGV  1 range id  2 "1" where the GPU failed on it, "0" where it was only handed back
--       3 most failures in a row before the rest of a range is abandoned
-- Returns nonces that went back; 0 where the range was not out any more or is abandoned.
local record = redis.call('HGET', KEYS[2], ARGV[1])
if not record then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('HGET', KEYS[1], 'state') ~= 'active' then return 0 end
local start, stop, done, queue, worker, attempts =
  string.match(record, '^(%d+) (%d+) (%d+) (%S+) (%S+) (%d+) (%d+)$')
attempts = tonumber(attempts) + tonumber(ARGV[2])
local left = tonumber(stop) - tonumber(done)
if attempts >= tonumber(ARGV[3]) then
  redis.call('RPUSH', KEYS[4], done .. ' ' .. stop)
  redis.call('HINCRBY', KEYS[1], 'abandoned', string.format('%.0f', left))
  return 0
end
redis.call('LPUSH', KEYS[3], done .. ' ' .. stop .. ' ' .. string.format('%d', attempts))
redis.call('HINCRBY', KEYS[1], 'ranges_returned', 1)
return left
