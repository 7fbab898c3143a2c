-- Take a worker out of the pool, if the queue is still its own.
--
-- KEYS  1 gpus  2 heartbeats: see beat.lua
-- ARGV  1 queue  2 worker id
-- Returns 1 if it was taken out.
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record or cjson.decode(record).worker ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
