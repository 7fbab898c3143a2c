-- The noise of private tasks' messages that this node was shown as a member of a committee.
CREATE TABLE noise (
    task BLOB NOT NULL,
    slot INTEGER NOT NULL,
    miner BLOB NOT NULL,
    lane INTEGER NOT NULL,
    noise BLOB NOT NULL,      -- BLS signature over `wire.slots.noise_digest`; kept as long as maps
    PRIMARY KEY (task, slot, miner, lane)
) STRICT, WITHOUT ROWID;
