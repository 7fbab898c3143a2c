"""The agent: what the owner of a GPU machine runs, so that it gets jobs and is paid."""
