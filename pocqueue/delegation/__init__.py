"""The big node (9090): searches for small nodes, over HTTP."""
