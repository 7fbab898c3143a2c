"""The small agent, a file that runs by itself: it imports nothing of ours, and nothing of ours imports it."""
