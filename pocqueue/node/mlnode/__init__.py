"""The artifact routes of an MLNode, over whatever this node works with: docs/artifact.md, docs/wire.md."""
