-- What this node has said as a member of committees, in the turns that are not over.
CREATE TABLE said (
    turn INTEGER NOT NULL,    -- `Certificate.turn`
    number INTEGER NOT NULL,  -- in the order in which it was said, from 0 on
    is_vote INTEGER NOT NULL,
    said BLOB NOT NULL,       -- `wire.votes.Vote` if it is one, else `wire.votes.Proposal`
    PRIMARY KEY (turn, number)
) STRICT, WITHOUT ROWID;
