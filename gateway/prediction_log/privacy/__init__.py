"""What of a request may be written down, and whose it is.

Everything here happens before a record is encoded: nothing that is dropped, hashed or sealed
reaches a file in its raw form. Read tap.py first, which puts the parts together.
"""
