"""Committees: who has a seat, how members agree on a turn. Pure: time is an argument, nothing is sent or written here.

seats.py      a member's place and share of the key
quorum.py     how many of a committee have to agree, and how many may be faulty
turn.py       one decision: who leads, which words are within the rules, what shares make
words.py      what was heard of a turn, and who said two things
agreement.py  single-shot Tendermint of a turn, by one member
"""
