-- Certified slots of all tasks, weights at the starts of laps, and what this node's own lanes sent last.
CREATE TABLE record (
    task BLOB NOT NULL,       -- 32 bytes
    slot INTEGER NOT NULL,
    record BLOB NOT NULL,     -- `wire.slots.SlotRecord`; of a client's task kept for ever
    PRIMARY KEY (task, slot)
) STRICT;
CREATE TABLE message (
    task BLOB NOT NULL,
    slot INTEGER NOT NULL,
    place INTEGER NOT NULL,   -- in the record's ids, from 0 on
    miner BLOB NOT NULL,
    parts INTEGER NOT NULL,
    iteration BLOB NOT NULL,  -- `wire.slots.Iteration`; of a client's task kept for ever
    PRIMARY KEY (task, slot, place)
) STRICT;
CREATE TABLE map (
    task BLOB NOT NULL,
    slot INTEGER NOT NULL,
    place INTEGER NOT NULL,
    map BLOB NOT NULL,        -- kept until it is too far behind the anchor
    PRIMARY KEY (task, slot, place)
) STRICT;
CREATE TABLE theta (
    task BLOB NOT NULL,
    slot INTEGER NOT NULL,    -- at whose start these weights are; the first one of a lap
    signed BLOB NOT NULL,     -- `wire.slots.SignedCertificate` of the slot before
    theta BLOB NOT NULL,      -- float32, little-endian
    PRIMARY KEY (task, slot)
) STRICT;
CREATE TABLE sent (
    task BLOB NOT NULL,
    miner BLOB NOT NULL,
    lane INTEGER NOT NULL,
    sent BLOB NOT NULL,       -- `wire.requests.IterationWithMap`: the newest message
    PRIMARY KEY (task, miner, lane)
) STRICT;
CREATE TABLE meta (
    name TEXT PRIMARY KEY,    -- 'network': 32 bytes
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
