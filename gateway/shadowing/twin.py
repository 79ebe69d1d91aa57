"""A loaded copy of a version in a shadow's lane, and the copies of requests that are sent to it.

Knows the batcher and who holds which tensors for how long; counts nothing. Read next: lane.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from engines.batch_queue import CallbackRequest, QueuedRequest
from engines.served import ServedVersion
from gateway.shadowing.counts import Mirrored

_MS: Final = 1_000_000


class LoadedCopy:
    """A loaded copy of the version, and what its engine holds past the deadline."""

    __slots__ = ("_late_batch", "_late_bytes", "artefact", "batcher", "device", "served")

    def __init__(self, served: ServedVersion) -> None:
        self.served = served
        self.batcher = served.batcher
        metadata = self.batcher.metadata
        self.artefact = bytes.fromhex(metadata.artifact_sha256[:16])
        self.device = metadata.device
        self._late_batch = 0
        self._late_bytes = 0

    @property
    def late_bytes(self) -> int:
        """Bytes of requests that timed out in the batch which the engine still has."""
        if self._late_bytes and self._executing() != self._late_batch:
            self._late_bytes = 0
        return self._late_bytes

    def keep_late(self, held_bytes: int) -> None:
        """Charge a request that has timed out inside the engine, until its batch ends."""
        batch = self._executing()
        if batch != self._late_batch:
            self._late_batch, self._late_bytes = batch, 0
        if batch:
            self._late_bytes += held_bytes

    def _executing(self) -> int:
        """Return the number of the batch inside the engine, 0: none.

        There is one instance, so the last batch that was taken is the one that it has.
        """
        found = self.batcher.statistics()
        return sum(found.queue.batches_by_reason.values()) if found.busy_instances else 0


class Twin:
    """The copy of one live request, from its offer to its outcome."""

    __slots__ = ("_finish", "copy", "held_bytes", "mirrored", "queued", "started_ns")

    def __init__(
        self,
        mirrored: Mirrored,
        *,
        copy: LoadedCopy,
        held_bytes: int,
        finish: Callable[[Twin, object], None],
    ) -> None:
        self._finish = finish
        self.copy = copy
        self.mirrored: Mirrored | None = mirrored
        """None once it has its outcome."""
        self.held_bytes = held_bytes
        self.started_ns = time.monotonic_ns()
        self.queued: QueuedRequest | None = None

    def submit(self, mirrored: Mirrored, deadline_ms: int) -> None:
        """Hand the request to the copy's batcher, or raise what refuses it."""
        batcher = self.copy.batcher
        inputs, rows = batcher.signature.order(mirrored.inputs)
        self.queued = CallbackRequest(
            inputs=inputs,
            rows=rows,
            shape_key=batcher.signature.shape_key(inputs),
            enqueued_ns=self.started_ns,
            deadline_ns=self.started_ns + deadline_ms * _MS,
            on_done=self.done,
        )
        batcher.submit(self.queued)

    def done(self, outcome: object) -> None:
        """Take the batcher's outcome."""
        self._finish(self, outcome)

    def let_go(self, *, may_execute: bool) -> None:
        """Forget the request, whose outcome has come.

        Ownership: the batcher's index of deadlines may refer to this for a while longer, so the
        tensors are taken out of the queued request as well. Not while the engine's thread may read
        them: then they go with its batch.
        """
        if self.queued is not None and not may_execute:
            self.queued.inputs = ()
        self.mirrored = self.queued = None
