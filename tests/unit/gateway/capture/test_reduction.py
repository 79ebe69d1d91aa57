"""Which kinds of a reduced tensor have which parts. Cutting is in test_record.py, for all types."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from engines.tensors import BYTES, Tensor, encode_bytes
from gateway.prediction_log.capture.reduction import reduce_tensor
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.record import Reduced
from gateway.prediction_log_config import Over

IMAGE = np.random.default_rng(3).normal(size=(2, 3, 16, 16)).astype("<f4")
PICTURE = Tensor("x", "FP32", IMAGE.shape, memoryview(IMAGE.tobytes()))
TEXT = Tensor("t", BYTES, (2,), encode_bytes([b"a" * 20, b"b"]))


def reduced(tensor: Tensor, over: Over, references: References | None = None) -> Reduced:
    return reduce_tensor(tensor, over, limit_bytes=30, references=references)


def digest_of(tensor: Tensor) -> bytes:
    return blake2b(tensor.data, digest_size=16).digest()


def test_statistics_come_with_channels_histogram_and_digest() -> None:
    found = reduced(PICTURE, "statistics")
    assert (found.kind, found.data, found.uri, found.thumb_shape) == ("stat", b"", "", ())
    assert found.digest == digest_of(PICTURE)
    assert found.statistics["count"] == IMAGE.size
    assert found.statistics["mean"] == pytest.approx(IMAGE.mean(dtype="f8"))
    assert len(found.channels) == 3
    assert sum(found.histogram) == IMAGE.size


def test_a_thumbnail_comes_with_the_statistics() -> None:
    found = reduced(PICTURE, "thumbnail")
    statistics = reduced(PICTURE, "statistics")
    assert (found.kind, found.thumb_shape, len(found.data)) == ("thumb", (3, 8, 8), 768)
    pooled = IMAGE[0].reshape(3, 8, 2, 8, 2).mean(axis=(2, 4), dtype="f8")
    assert np.allclose(np.frombuffer(found.data, "<f4").reshape(3, 8, 8), pooled)
    assert found.statistics == statistics.statistics
    assert found.histogram == statistics.histogram
    assert found.digest == statistics.digest


def test_what_has_no_picture_has_statistics() -> None:
    assert reduced(TEXT, "thumbnail") == reduced(TEXT, "statistics")
    assert reduced(TEXT, "thumbnail").statistics["max"] == 20


def test_a_reference_names_the_file_of_the_whole_bytes(tmp_path: Path) -> None:
    references = References(tmp_path, max_bytes=1 << 20)
    found = reduced(PICTURE, "reference", references)
    assert (found.kind, found.data) == ("ref", b"")
    assert references.path_of(found.uri).read_bytes() == IMAGE.tobytes()
    assert found.statistics == reduced(PICTURE, "statistics").statistics
    assert reduced(TEXT, "reference", references).uri


def test_a_reference_that_cannot_be_kept_is_statistics(tmp_path: Path) -> None:
    no_room = References(tmp_path, max_bytes=1)
    expected = reduced(PICTURE, "statistics")
    assert reduced(PICTURE, "reference", no_room) == expected
    assert reduced(PICTURE, "reference", None) == expected


def test_cut_tensors_have_their_first_whole_elements_and_nothing_else() -> None:
    found = reduced(PICTURE, "truncate")
    assert found == Reduced(kind="trunc", kept_bytes=28, data=IMAGE.tobytes()[:28])
