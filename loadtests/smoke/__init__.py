"""`make bench-smoke`: a gate against slowdowns; costs in turns of a calibration loop."""
