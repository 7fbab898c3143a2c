-- Blocks with what each changes, the state after the anchor and the way back from there, and which network and anchor
-- these are of.
CREATE TABLE block (
    id BLOB PRIMARY KEY,      -- 32 bytes, of the header
    height INTEGER NOT NULL,  -- 1 and up; one block a height up to the anchor, any number above it
    parent BLOB NOT NULL,
    header BLOB NOT NULL,     -- `wire.blocks.Header`, as in the block: read without the rest
    block BLOB NOT NULL,      -- `wire.blocks.Block`
    diff BLOB NOT NULL        -- (key, value or nil) of all that it changes in its parent's state, by key
) STRICT;
CREATE INDEX block_height ON block (height);
CREATE TABLE state (
    key BLOB PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE undo (
    height INTEGER PRIMARY KEY,  -- of each block up to the anchor
    diff BLOB NOT NULL           -- (key, value or nil) of all that it changed, as that was before
) STRICT;
CREATE TABLE meta (
    name TEXT PRIMARY KEY,    -- 'network', 'anchor': 32 bytes each
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
