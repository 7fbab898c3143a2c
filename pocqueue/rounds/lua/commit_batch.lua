-- Count one batch of a range, exactly once.
--
-- KEYS  (all of one round, `pocqueue:1:{ROUND}:…`; gone an hour after the round ended)
--   1 round        hash    specification, state, deadline_ms, next_index, counters
--   2 ranges       hash    range id -> "start stop done queue worker attempts assigned_ms"; only
--                          ranges that are out on a GPU; done = first index not yet counted
--   3 proofs       stream  one entry a batch with valid nonces: nonces, dist (JSON lists), queue
--   4 cover_starts hash    first index -> end, of each run of counted nonce indices; runs are
--   5 cover_stops  hash    end -> first index     disjoint and merged when they touch
--   6 active       set     ids of active rounds (of all rounds; lives for ever)
--   7 abandoned    list    see release_range.lua
--   8 metrics      hash    totals of all rounds since ever, for graphs: batches, late_batches, checked,
--                          valid, nonfinite, ranges_returned, abandoned, callbacks_given_up,
--                          auth_failures (lives for ever, small)
-- ARGV
--   1 round id  2 range id  3 first index  4 end index (not included)  5 number of valid nonces
--   6 number of non-finite distances  7 nonces (JSON)  8 distances (JSON)  9 ms to keep what ended
-- Returns {outcome, done}
--   "committed"  the batch counts; done = its end
--   "repeated"   it was counted before; done = where the range stands
--   "gap"        the range stands elsewhere: go on from done
--   "reassigned" the range is not out under this id any more: leave it
--   "late"       the deadline is over; the batch is dropped
--   "closed"     the round ended or is not known; the batch is dropped
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'active' then return {'closed', 0} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if now_ms >= tonumber(redis.call('HGET', KEYS[1], 'deadline_ms')) then
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
if to == tonumber(stop) then
  redis.call('HDEL', KEYS[2], ARGV[2])
else
  redis.call('HSET', KEYS[2], ARGV[2],
    table.concat({start, stop, text(to), queue, worker, '0', assigned}, ' '))
end

-- Should nobody be left to close the round, what it wrote goes by itself all the same.
local goes_at = string.format('%.0f',
  tonumber(redis.call('HGET', KEYS[1], 'deadline_ms')) + tonumber(ARGV[9]))

local checked = redis.call('HINCRBY', KEYS[1], 'checked', text(to - from))
local batches = redis.call('HINCRBY', KEYS[1], 'batches', 1)
redis.call('HINCRBY', KEYS[8], 'checked', text(to - from))
redis.call('HINCRBY', KEYS[8], 'batches', 1)
if tonumber(ARGV[6]) > 0 then
  redis.call('HINCRBY', KEYS[1], 'nonfinite', ARGV[6])
  redis.call('HINCRBY', KEYS[8], 'nonfinite', ARGV[6])
end
if tonumber(ARGV[5]) > 0 then
  redis.call('HINCRBY', KEYS[8], 'valid', ARGV[5])
  local valid = redis.call('HINCRBY', KEYS[1], 'valid', ARGV[5])
  -- Stamped with the time that the deadline was held against: '*' takes a later one. Where the clock was
  -- set back, '*' goes on from the last entry.
  local id = text(now_ms) .. '-' .. text(batches)
  local entry = {'nonces', ARGV[7], 'dist', ARGV[8], 'queue', queue}
  local added = redis.pcall('XADD', KEYS[3], id, unpack(entry))
  if type(added) == 'table' and added.err then
    redis.call('XADD', KEYS[3], '*', unpack(entry))
  end
  if valid == tonumber(ARGV[5]) then redis.call('PEXPIREAT', KEYS[3], goes_at) end
end

-- Merge [from, to) with the runs that end or begin where it does. New fields are written before old
-- ones go: a hash that loses its last field loses its time to live with it.
local first = redis.call('HGET', KEYS[5], text(from)) or text(from)
local last = redis.call('HGET', KEYS[4], text(to)) or text(to)
redis.call('HSET', KEYS[4], first, last)
redis.call('HSET', KEYS[5], last, first)
if first ~= text(from) then redis.call('HDEL', KEYS[5], text(from)) end
if last ~= text(to) then redis.call('HDEL', KEYS[4], text(to)) end
if checked == to - from then
  redis.call('PEXPIREAT', KEYS[4], goes_at)
  redis.call('PEXPIREAT', KEYS[5], goes_at)
end

local wanted = redis.call('HGET', KEYS[1], 'max_nonces')
local settled = checked + tonumber(redis.call('HGET', KEYS[1], 'abandoned'))
if wanted ~= '' and settled >= tonumber(wanted) then
  redis.call('HSET', KEYS[1], 'state', 'completed', 'ended_ms', text(now_ms))
  redis.call('SREM', KEYS[6], ARGV[1])
  for i = 1, 7 do
    if i ~= 6 then redis.call('PEXPIRE', KEYS[i], ARGV[9]) end
  end
end
return {'committed', to}
