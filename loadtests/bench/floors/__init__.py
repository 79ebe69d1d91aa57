"""The least that a stock stack can do for a request: what ratios in the report are ratios to."""
