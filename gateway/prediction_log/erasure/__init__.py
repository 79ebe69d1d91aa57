"""The right to be forgotten: finds and destroys what the prediction log holds of a data subject.

Read first: tombstone.py (what is agreed on, and the order of things), then eraser.py (the command's
side), watch.py (the side of a running gateway), rebuild.py (why a stream is copied).
"""
