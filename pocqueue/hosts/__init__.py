"""GPU hosts: machines join with a token, run jobs, are paid, and their owners see it.

`wire.py` has the messages between a machine and the gateway.
"""
