-- kept   nonces of each generated message that was accepted: 64-bit integers of this machine, one behind the
--        other. A nonce goes out once in a round, whatever search of the round finds it again. Stays when the
--        message has gone out, and goes an hour after its session's end, or when the message is held.

CREATE TABLE kept (
    message_id INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
    nonces     BLOB NOT NULL
);

CREATE INDEX kept_session ON kept (session_id);
