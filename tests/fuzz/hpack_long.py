"""The long run of the HPACK comparison: `python -m tests.fuzz.hpack_long --cases 1000000`.

A case is one header block that both decoders were given. Prints the seed first, so that a run can
be repeated, and the counts last.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from random import Random

from tests.fuzz.hpack_cases import compare, connection


def main() -> None:
    """Compare the decoders until the number of cases is reached."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    asked = parser.parse_args()
    sys.stdout.write(f"seed {asked.seed}\n")
    random = Random(asked.seed)
    started_ns = time.monotonic_ns()
    cases = accepted = connections = 0
    while cases < asked.cases:
        blocks = connection(random)
        agreed = compare(blocks, random.choice((4_096, 4_096, 8_192)))
        cases += min(agreed + 1, len(blocks))
        accepted += agreed
        connections += 1
    elapsed_s = (time.monotonic_ns() - started_ns) / 1e9
    sys.stdout.write(
        f"{cases} blocks on {connections} connections, {accepted} accepted and"
        f" {cases - accepted} refused by both, no difference, {elapsed_s:.0f} s\n"
    )


if __name__ == "__main__":
    main()
