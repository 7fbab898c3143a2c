"""The proof of compute: its maths and its data. No network but callbacks, no Redis, no clock.

`search.py` says what is searched, `scheme.py` what a proof scheme is; each scheme is a folder. `config`,
`data`, `gpu_random`, `manager` and `sender` have the names of the reference implementation.
"""
