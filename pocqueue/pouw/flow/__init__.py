"""A running node: the loops that join chain, slots, training and links. Decisions are theirs; here is who waits for whom.

* ``core.py``: what all of them share, and the one thread that the chain is used in
* ``orders.py``: transactions, others' and our own
* ``blocks.py``: blocks that arrive, are checked, trained over and taken
* ``slots.py``: messages and certified slots that arrive, and the weights that follow
* ``mining.py``: an iteration a slot, and the blocks that its draws make
* ``committee.py``: what a supervisor in office does
* ``sync.py``: what is asked of others, and answered
* ``life.py``: all of it, from start to stop
"""
