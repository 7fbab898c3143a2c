-- Indexes for what is asked about the messages again and again: they are many, and their bodies large.

CREATE INDEX messages_state ON messages (state, created_s);
CREATE INDEX messages_troubled ON messages (state, id) WHERE error != '';
