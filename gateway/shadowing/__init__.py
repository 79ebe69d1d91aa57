"""Shadows: versions that get copies of live requests, and whose answers only the log sees.

What a shadow may never do, whatever its engine does (hang, raise, sleep, not come up): raise into
the live path, make it wait, share a batch, a queue or an instance with it, hold more than its bound
in requests and bytes, delay a drain. What it could not do is dropped and counted by reason.

Read in this order: counts.py (the values), shadows.py (all lanes of the gateway, and their copies),
lane.py (one shadow: bounds, outcomes, records), twin.py (one copied request, and who holds it).
"""

from gateway.shadowing.counts import Mirrored, ShadowDrop, ShadowStatistics
from gateway.shadowing.shadows import Shadows

__all__ = ["Mirrored", "ShadowDrop", "ShadowStatistics", "Shadows"]
