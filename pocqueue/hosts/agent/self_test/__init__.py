"""The self-test: what this machine can do, row by row, with what to do about what it cannot.

A row has a state. `fail` of a GPU takes that GPU out and leaves the others; `fail` of the machine says what it gets no
jobs for; `warn` is worth mending; `skip` was not looked at, and says why.
"""
