"""Drift: does what a model is asked, answers and gets right still look like its reference?

Read in this order: statistics.py (figures of two samples), column.py (one column against its
reference), reference.py, concept.py (error rates under continuous watching), decide.py (the
verdict), then report.py and page.py (what a person sees), monitor.py (windows, one after another).
All decisions are pure functions of their arguments; only monitor.py, tables.py and the command line
touch Redis, files or time.
"""
