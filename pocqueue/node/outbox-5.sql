-- Batches and verdicts of a URL are two lines, as a chain takes each in a phase of its own.

DROP INDEX messages_waiting;
CREATE INDEX messages_waiting ON messages (url, kind, id) WHERE state = 'waiting';
