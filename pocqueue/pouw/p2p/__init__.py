"""Links between nodes. They carry bytes that they do not understand.

From the inside to the outside; only the last five touch sockets:

* ``frames.py``: kinds of frames, how long each may be and how many of them a peer may send
* ``messages.py``: the structs that links need for themselves
* ``limits.py``: token buckets; points and bans
* ``gossip.py``: what was seen already, and who is asked for what
* ``peers.py``: the table of addresses; ``dialing.py``: who is dialled when
* ``tls.py``: certificates, and proofs of account keys that are good on one channel alone
* ``channel.py``: frames over a stream; ``handshake.py``: from two streams to two peers that know each other
* ``sockets.py``: listens, accepts, dials; ``link.py``: one peer; ``network.py``: all of them
"""
