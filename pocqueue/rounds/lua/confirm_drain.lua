-- Note how far a session was handed over, if nobody else did so since it was read.
--
-- KEYS  1 round (hash): see commit_batch.lua
--       2 drain (string "cursor token": behind the last entry that was handed over, and which reply
--         that was; gone with the round)
-- ARGV  1 cursor that the reply began at  2 cursor behind its last entry  3 token of the reply
--       4 ms to keep a round after its end
-- Returns 1, also if this very reply was noted before (a lost answer asked for again); 0 if
-- another reply was faster or the round is gone.
local deadline_ms = redis.call('HGET', KEYS[1], 'deadline_ms')
if not deadline_ms then return 0 end
local noted = ARGV[2] .. ' ' .. ARGV[3]
local stands = redis.call('GET', KEYS[2]) or '0-0 '
if stands == noted then return 1 end
if string.match(stands, '^(%S+) ') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], noted,
  'PXAT', string.format('%.0f', tonumber(deadline_ms) + tonumber(ARGV[4])))
return 1
