-- kept   nonces of each page that was accepted: 64-bit integers of this machine, one behind the other. A nonce
--        goes out once in a round, whatever search of the round finds it again.

CREATE TABLE kept (
    session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
    nonces     BLOB NOT NULL
);

CREATE INDEX kept_session ON kept (session_id);
