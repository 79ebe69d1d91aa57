"""Load tests and benchmarks of a running gateway; see README.md beside this file."""
