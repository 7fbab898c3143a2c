"""pocqueue itself on a server: its version, its variables, its units, and an update of one worker at a time."""
