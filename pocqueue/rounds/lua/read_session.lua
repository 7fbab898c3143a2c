-- Read how a session stands and its proofs behind a cursor, as they are at one moment.
--
-- KEYS  1 round (hash)  2 proofs (stream): see commit_batch.lua
--       3 drain (string "cursor token": how far the session was handed over to clients that keep no
--         cursor; gone with the round): see confirm_drain.lua
-- ARGV  1 cursor, or "" for where the drain stands  2 most entries  3 most bytes of their nonces and
--       values, though one entry is always read
-- Returns nothing if there is no such round, else {specification, state, reason, deadline_ms,
--   next_index, now_ms, entries in the stream, cursor read from, cursor behind the last entry read,
--   "1" if more are there, number of entries read, the entries}
-- The entries are one text: nonces and values of each with ASCII 31 in between, entries with ASCII 30
-- in between. JSON as it is stored has neither, so that the reader replaces them and has the JSON of all
-- batches without parsing any.
local round = redis.call('HMGET', KEYS[1], 'spec', 'state', 'reason', 'deadline_ms', 'next_index')
if not round[1] then return false end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local from = ARGV[1]
if from == '' then
  from = string.match(redis.call('GET', KEYS[3]) or '0-0 ', '^(%S+) ')
end
local most, room = tonumber(ARGV[2]), tonumber(ARGV[3])
local last, more, parts = from, '0', {}
local open = true
while open do
  -- A few at a time: how large they are shows only once they are here.
  local reply = redis.call('XREAD', 'COUNT', 128, 'STREAMS', KEYS[2], last)
  if not reply then break end
  local entries = reply[1][2]
  for _, entry in ipairs(entries) do
    local nonces, values
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'nonces' then nonces = entry[2][i + 1] end
      if entry[2][i] == 'values' then values = entry[2][i + 1] end
    end
    room = room - #nonces - #values
    if #parts >= most or (room < 0 and #parts > 0) then
      more, open = '1', false
      break
    end
    parts[#parts + 1] = nonces .. '\31' .. values
    last = entry[1]
  end
  if #entries < 128 then break end
end
return {round[1], round[2], round[3], round[4], round[5], string.format('%.0f', now_ms),
  redis.call('XLEN', KEYS[2]), from, last, more, #parts, table.concat(parts, '\30')}
