-- Count one batch of a range, exactly once.
--
-- KEYS  (all of one round, `pocqueue:2:{ROUND}:…`; gone an hour after the round ended)
--   1 round        hash    specification, state, deadline_ms, next_index, counters
--   2 ranges       hash    range id -> "start stop done queue worker attempts assigned_ms"; only
--                          ranges that are out on a GPU; done = first index not yet counted
--   3 proofs       stream  one entry a batch with valid nonces: nonces, values (JSON lists), queue
--   4 cover_starts hash    first index -> end, of each run of counted nonce indices; runs are
--   5 cover_stops  hash    end -> first index     disjoint and merged when they touch
--   6 active       set     ids of active rounds (of all rounds; lives for ever)
--   7 abandoned    list    see release_range.lua
--   8 metrics      hash    totals of all rounds since ever, for graphs: batches, late_batches, checked,
--                          valid, nonfinite, ranges_returned, abandoned, callbacks_given_up,
--                          auth_failures (lives for ever, small)
-- ARGV
--   1 round id  2 range id  3 first index  4 end index (not included)  5 number of valid nonces
--   6 number of values that could not be computed  7 nonces (JSON)  8 their values (JSON)  9 ms to keep what ended
-- Returns {outcome, done}
--   "committed"  the batch counts; done = its end
--   "repeated"   it was counted before; done = where the range stands
--   "gap"        the range stands elsewhere: go on from done
--   "reassigned" the range is not out under this id any more: leave it
--   "late"       the deadline is over; the batch is dropped
--   "closed"     the round ended or is not known; the batch is dropped
-- As few commands as will do: each costs more than what it changes, and this runs for every batch of every GPU.
local round = redis.call('HMGET', KEYS[1], 'state', 'deadline_ms', 'checked', 'batches', 'valid', 'max_nonces',
  'abandoned')
if round[1] ~= 'active' then return {'closed', 0} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline_ms = tonumber(round[2])
if now_ms >= deadline_ms then
  redis.call('HINCRBY', KEYS[1], 'late_batches', 1)
  redis.call('HINCRBY', KEYS[8], 'late_batches', 1)
  return {'late', 0}
end
local record = redis.call('HGET', KEYS[2], ARGV[2])
if not record then return {'reassigned', 0} end
local start, stop, done, queue, worker, attempts, assigned =
  string.match(record, '^(%d+) (%d+) (%d+) (%S+) (%S+) (%d+) (%d+)$')
local from, to = tonumber(ARGV[3]), tonumber(ARGV[4])
if from ~= tonumber(done) then
  if to <= tonumber(done) then return {'repeated', tonumber(done)} end
  return {'gap', tonumber(done)}
end
if to <= from or to > tonumber(stop) then
  return redis.error_reply('batch ' .. ARGV[3] .. '-' .. ARGV[4] .. ' is outside its range ' .. record)
end

-- %.0f, because Lua writes whole numbers from 1e14 on as 1e+14.
local text = function(number) return string.format('%.0f', number) end
local from_text, to_text = text(from), text(to)
if to == tonumber(stop) then
  redis.call('HDEL', KEYS[2], ARGV[2])
else
  redis.call('HSET', KEYS[2], ARGV[2],
    table.concat({start, stop, to_text, queue, worker, '0', assigned}, ' '))
end

-- What is written expires by itself as well, should every scheduler be gone.
local goes_at = text(deadline_ms + tonumber(ARGV[9]))

local num_valid, num_nonfinite = tonumber(ARGV[5]), tonumber(ARGV[6])
local checked, batches = tonumber(round[3]) + to - from, tonumber(round[4]) + 1
local valid = tonumber(round[5]) + num_valid
local totals = redis.call('HMGET', KEYS[8], 'checked', 'batches', 'valid')
local total = function(i, more) return text((tonumber(totals[i]) or 0) + more) end
redis.call('HSET', KEYS[1], 'checked', text(checked), 'batches', text(batches), 'valid', text(valid))
redis.call('HSET', KEYS[8], 'checked', total(1, to - from), 'batches', total(2, 1), 'valid', total(3, num_valid))
if num_nonfinite > 0 then
  redis.call('HINCRBY', KEYS[1], 'nonfinite', ARGV[6])
  redis.call('HINCRBY', KEYS[8], 'nonfinite', ARGV[6])
end
if num_valid > 0 then
  -- Stamped with the time that the deadline was held against: '*' takes a later one. If the clock was
  -- set back, '*' goes on from the last entry.
  local id = text(now_ms) .. '-' .. text(batches)
  local added = redis.pcall('XADD', KEYS[3], id, 'nonces', ARGV[7], 'values', ARGV[8], 'queue', queue)
  if type(added) == 'table' and added.err then
    redis.call('XADD', KEYS[3], '*', 'nonces', ARGV[7], 'values', ARGV[8], 'queue', queue)
  end
  if valid == num_valid then redis.call('PEXPIREAT', KEYS[3], goes_at) end
end

-- Merge [from, to) with the runs that end or begin where it does. New fields are written before old
-- ones go: a hash that loses its last field loses its time to live with it.
local first = redis.call('HGET', KEYS[5], from_text) or from_text
local last = redis.call('HGET', KEYS[4], to_text) or to_text
redis.call('HSET', KEYS[4], first, last)
redis.call('HSET', KEYS[5], last, first)
if first ~= from_text then redis.call('HDEL', KEYS[5], from_text) end
if last ~= to_text then redis.call('HDEL', KEYS[4], to_text) end
if checked == to - from then
  redis.call('PEXPIREAT', KEYS[4], goes_at)
  redis.call('PEXPIREAT', KEYS[5], goes_at)
end

if round[6] ~= '' and checked + tonumber(round[7]) >= tonumber(round[6]) then
  redis.call('HSET', KEYS[1], 'state', 'completed', 'ended_ms', text(now_ms))
  redis.call('SREM', KEYS[6], ARGV[1])
  for i = 1, 7 do
    if i ~= 6 then redis.call('PEXPIRE', KEYS[i], ARGV[9]) end
  end
end
return {'committed', to}
