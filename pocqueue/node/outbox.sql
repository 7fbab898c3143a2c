-- The outbox of a small node. Text is UTF-8, times are Unix seconds.
--
-- sessions   one row for each search whose batches go through this node. Removed a day after its
--            end, or when its last message is, if that is later.
-- messages   what the receiver has not confirmed: one row for each signed batch or verdict. Removed by
--            the receiver's 200, or by the operator.

CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY,
    origin     TEXT NOT NULL CHECK (origin IN ('delegation', 'queue', 'engine')),
    state      TEXT NOT NULL CHECK (state IN ('open', 'closed', 'fraud')),
    cursor     TEXT NOT NULL,            -- behind the last page that is in the outbox; '' at first
    request    TEXT NOT NULL,            -- JSON, as the owner of the session wrote it
    created_s  REAL NOT NULL,
    ended_s    REAL,                     -- NULL while it is open
    batches    INTEGER NOT NULL DEFAULT 0,
    nonces     INTEGER NOT NULL DEFAULT 0,
    sampled    INTEGER NOT NULL DEFAULT 0,  -- nonces that were recomputed
    invalid    INTEGER NOT NULL DEFAULT 0   -- and of these, those that were wrong
);

CREATE TABLE messages (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of sending; never used again
    session_id TEXT NOT NULL REFERENCES sessions (session_id),
    position   TEXT NOT NULL,            -- of the batch in its session
    kind       TEXT NOT NULL CHECK (kind IN ('generated', 'validated')),
    url        TEXT NOT NULL,            -- '/' and kind are appended
    body       TEXT NOT NULL,            -- JSON, signed already: sent as it is
    nonces     INTEGER NOT NULL,
    created_s  REAL NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,  -- that failed
    next_s     REAL NOT NULL DEFAULT 0,     -- not to be tried before
    state      TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'refused', 'held')),
    error      TEXT NOT NULL DEFAULT '',
    UNIQUE (session_id, kind, position)
);

CREATE INDEX messages_waiting ON messages (url, id) WHERE state = 'waiting';
