"""The spool: where records wait, safe from a crash, until they are shipped to Redis.

Read store.py first (the interface), then block.py (the format), then spool.py (the files).
"""
