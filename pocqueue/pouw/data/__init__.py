"""Data of clients' own: files that are named by their hash, kept in chunks, and read with everything checked.

No torch here, and nothing of the network: `flow.datasets` fetches them and gives them to others.
"""
