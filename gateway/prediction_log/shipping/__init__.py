"""Takes what the spool holds to Redis: once, in order, and for as long as retention says.

Read shipper.py first (the task), then delivery.py (one chunk), sink.py and scripts.py (one stream).
"""
