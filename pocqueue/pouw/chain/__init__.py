"""Accounts, tickets and tasks; which transactions and blocks are good, and which chain is the heaviest."""
