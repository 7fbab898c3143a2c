-- Batches that are not signed: those of a session may go out together, in one body.

ALTER TABLE messages ADD COLUMN merges INTEGER NOT NULL DEFAULT 0 CHECK (merges IN (0, 1));
