"""Clients that call a gateway without a pause, over both protocols, and count what comes back."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from typing import Final, Self

import grpc
import httpx

from tests.support.transports import RAW, TRANSPORTS, Ask, Listeners, Transport

JOIN_LIMIT_S: Final = 20.0


class Load:
    """Some threads per protocol, each with a connection of its own, calling until the block ends.

    `answers` counts codes; `broken` keeps what ended without an answer of the gateway's own.
    """

    def __init__(self, at: Listeners, ask: Ask, *, threads_per_protocol: int = 2) -> None:
        self.answers: Counter[int | str] = Counter()
        self.broken: list[str] = []
        self._ask = ask
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(TRANSPORTS[name](at),), name=f"load-{name}")
            for name in RAW
            for _ in range(threads_per_protocol)
        ]

    @property
    def total(self) -> int:
        """How many calls were answered, with whatever code."""
        with self._lock:
            return self.answers.total()

    def count(self, *codes: int | str) -> int:
        """Return how many answers had one of these codes."""
        with self._lock:
            return sum(self.answers[code] for code in codes)

    def _call(self, transport: Transport) -> None:
        while not self._is_over.is_set():
            try:
                code = transport.infer(self._ask).code
            except (httpx.HTTPError, grpc.RpcError) as exc:
                with self._lock:
                    self.broken.append(f"{transport.name}: {exc!r}")
                self._is_over.wait(0.02)
                continue
            with self._lock:
                self.answers[code] += 1
            if code not in (200, "OK"):
                self._is_over.wait(0.02)
        transport.close()

    def stop(self) -> None:
        """End the calls and wait for the answers under way. Idempotent."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(JOIN_LIMIT_S)
            assert not thread.is_alive(), f"{thread.name} hangs"

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
