"""`make bench`: what a request costs and what batching buys; method and bias before the figures."""
