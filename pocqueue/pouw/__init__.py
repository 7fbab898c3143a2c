"""A network of nodes that train models together, get blocks out of that work, and check each other.

What is here by folder, from the inside to the outside:

* ``wire/``: everything that is hashed, signed, sent or kept, as bytes; knows nothing else of ours
* ``chain/``: accounts, transactions, blocks, which chain is the heaviest, what is final
* ``slots/``: iterations of a task that all its miners do in step, certificates and beacons over them, draws
* ``training/``: gradients, in a child process; the only place with torch
* ``p2p/``: links between nodes, gossip, discovery; carries bytes that it does not understand
* ``node.py`` puts them together; ``economics.py`` and ``blockchain.py`` have the other public names

`docs/pouw.md` says what it promises, and to whom.
"""
