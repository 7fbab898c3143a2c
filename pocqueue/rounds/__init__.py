"""A round over many GPUs: specification, store, planner, scheduler, pool, callbacks, files."""
