-- What is not signed is tried again after a refusal, some times.

ALTER TABLE messages ADD COLUMN is_signed INTEGER NOT NULL DEFAULT 1 CHECK (is_signed IN (0, 1));
UPDATE messages SET is_signed = 0 WHERE merges = 1;
CREATE INDEX messages_again ON messages (next_s) WHERE state = 'refused' AND is_signed = 0;
