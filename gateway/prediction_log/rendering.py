"""Prediction records as text: one line for a person, or one JSON object for a program."""
