"""Committees: who has a seat, how members agree on a turn. Pure: time is an argument, nothing is sent or written here."""
