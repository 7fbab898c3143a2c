"""A service of its own, as small as one gets with `pocqueue.web`: token rules, HTTP, WebSocket, SQLite.

The next real service is a folder like this one and a line that calls `serve`: see `__main__.py`.
"""
