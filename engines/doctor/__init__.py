"""What this machine can run, what is missing, and what does not go together: `sluice doctor`.

Knows packages, the driver and what they say of themselves; knows no model and no configuration.
`gather` looks and judges nothing; `judge` is pure. What can be tried is tried (probe.py, in a
process of its own), because a package that is installed may still not run.
"""

from engines.doctor.facts import Facts, Tried, gather
from engines.doctor.findings import Finding, Severity
from engines.doctor.rules import judge

__all__ = ["Facts", "Finding", "Severity", "Tried", "gather", "judge"]
