-- Say that a GPU queue has a live worker, or that another one has it.
--
-- KEYS  1 gpus        hash  queue -> JSON record of its worker; for ever, small
--       2 heartbeats  zset  queue -> ms of Redis's clock at the last heartbeat
-- ARGV  1 queue  2 worker id  3 record (JSON with at least "worker" and "ttl_ms")
-- Returns nothing, or the record of the other live worker that has the queue.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local record = redis.call('HGET', KEYS[1], ARGV[1])
if record then
  local other = cjson.decode(record)
  local last = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or 0)
  if other.worker ~= ARGV[2] and now_ms - last < other.ttl_ms then return record end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('ZADD', KEYS[2], string.format('%.0f', now_ms), ARGV[1])
return false
