"""The long run of HTTP/2 connections: `python -m tests.fuzz.frames_long --cases N`.

A case is one connection: valid traffic, or traffic with something wrong in it. It is fed once in
one piece and once in many; what the streams heard must be the same, and what `http2_peer` says must
hold all along; and the same again with gRPC's calls on it. On a valid one every call must also be
answered with what it sent. Prints the seed first and the counts last; a failure leaves the
connection in the folder of `run`.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from random import Random

from tests.fuzz import target_grpc
from tests.fuzz.frames import Client, good_connection, odd_connection, split
from tests.fuzz.http2_peer import Peer, compare, run
from tests.fuzz.run import FOLDER


def check(frames: list[bytes], choice: Random) -> bool:
    """Run a connection in both ways; return whether it survived."""
    stream = b"".join(frames)
    whole = run([stream])
    cut = run(split(choice, stream), choice)
    compare(cut, whole)
    target_grpc.check(stream, choice.choice(("none", "gzip")), choice)
    return not whole[0]


def check_good(client: Client, choice: Random) -> None:
    """Run a connection on which every call is right: each is understood, and answered."""
    peer = Peer()
    for piece in split(choice, b"".join(client.frames)):
        peer.feed(piece, is_direct=choice.random() < 0.5)
    peer.feed(b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\x00\x00\x00")  # all the window there is
    assert not peer.connection.is_ended
    assert list(peer.opened) == list(client.calls)
    for number, stream in peer.opened.items():
        assert stream.fields == client.calls[number]
        if number in peer.watcher.codes or stream.is_lost:
            continue
        assert stream.has_ended
        assert peer.watcher.answers.get(number, b"") == stream.body
    peer.finish()
    with target_grpc.silence():
        codes = target_grpc.run_good(split(choice, b"".join(client.frames)), choice)
    assert not codes, f"calls that were right were reset: {codes}"


def main() -> None:
    """Run connections until the number of cases is reached."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    asked = parser.parse_args()
    sys.stdout.write(f"seed {asked.seed}\n")
    random = Random(asked.seed)
    started_ns = time.monotonic_ns()
    count = survived = 0
    for _ in range(asked.cases):
        is_good = random.random() < 0.2
        client = good_connection(random)
        frames = client.frames if is_good else odd_connection(random)
        try:
            survived += check(frames, random)
            if is_good:
                check_good(client, random)
        except Exception:
            path = FOLDER / f"frames-{asked.seed}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"".join(frames))
            sys.stdout.write(f"after {count} frames: see {path}\n")
            raise
        count += len(frames)
    elapsed_s = (time.monotonic_ns() - started_ns) / 1e9
    sys.stdout.write(
        f"{asked.cases} connections of {count} frames, each in one piece and in many, echoed"
        f" and as gRPC, {survived} survived, nothing found, {elapsed_s:.0f} s\n"
    )


if __name__ == "__main__":
    main()
