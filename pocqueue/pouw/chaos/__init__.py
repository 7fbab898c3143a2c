"""Nodes that fail and cheat when they are told to, and a plan of what they are told: `pocqueue pouw testnet --chaos`.

Nothing else imports this: a node that `pocqueue pouw node` starts cannot be told any of it.
"""
