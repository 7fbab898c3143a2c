"""Sandboxes: where an agent runs commands of strangers, or does not."""
