-- Become or stay the leading scheduler.
--
-- KEYS  1 leader  string with a time to live: id of the leading scheduler
-- ARGV  1 scheduler id  2 ms after which a leader that does not renew loses the lead
-- Returns 1 if this scheduler leads.
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
