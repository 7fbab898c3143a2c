"""Gradients: data, models, iterations and their re-execution, in one child process; the only place with torch.

`trainer` is what the rest of the network calls and imports no torch.
"""
