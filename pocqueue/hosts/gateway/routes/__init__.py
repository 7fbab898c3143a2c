"""The REST routes, for owners, for admins and for everybody. Thin: what is decided is decided in the store."""
