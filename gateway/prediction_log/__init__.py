"""Prediction records: what was asked, what was answered, and by whom, in Redis Streams."""
