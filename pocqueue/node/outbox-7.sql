-- refusals   of the attempts that failed: those that the receiver answered with a refusal. An outage is none.

ALTER TABLE messages ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;
UPDATE messages SET refusals = attempts WHERE state = 'refused';
