-- Results of jobs: kept until the server has acknowledged them, and their keys for a while after that.
CREATE TABLE results (
    job TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    body TEXT,                -- the message as it is sent, JSON; NULL once it is acknowledged
    changed_s REAL NOT NULL,  -- Unix time of the end of the job, or of the acknowledgement
    PRIMARY KEY (job, attempt)
) STRICT;
CREATE INDEX results_acknowledged ON results (changed_s) WHERE body IS NULL;
