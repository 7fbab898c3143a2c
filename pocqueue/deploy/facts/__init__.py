"""What is so on a server: text of its commands in, values out; no connection, no clock, no guess."""
