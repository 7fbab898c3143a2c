-- Begin a delivery: put a token that only this run of a task knows in the place of the one that came with the task.
-- A task that is delivered once more, as the broker does after a broken connection, comes with the old token.
--
-- KEYS  1 callback  hash of one round; see advance_callback.lua
-- ARGV  1 token of the task  2 token of this run  3 ms to extend the lease by
-- Returns 1, also if it is asked again (a lost reply), or 0 if the lease is another run's.
local lease = redis.call('HGET', KEYS[1], 'lease')
if not lease or lease == '' or (lease ~= ARGV[1] and lease ~= ARGV[2]) then return 0 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'lease', ARGV[2], 'lease_ms', string.format('%.0f', now_ms + tonumber(ARGV[3])))
return 1
