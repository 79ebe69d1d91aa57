"""Turns answers and prediction records into lines for a person. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Final

from gateway.demo import picture
from gateway.demo.ask import KEY_HEADER, Answer
from gateway.demo.digits import Picture
from gateway.ids import as_text
from gateway.prediction_log.record import LoggedPrediction, LoggedTensor

_LABEL_WIDTH: Final = 11
_VALUES_SHOWN: Final = 10
_REASONS: Final = {
    "slot": "by the hash of its key",
    "random": "at random, it had no key",
    "version": "the caller named the version",
    "model": "no route was involved",
}


def answers(asked: Picture, given: Sequence[Answer], encoding: str) -> list[str]:
    """Return the picture, framed, with what was answered to its right."""
    shades = picture.shades_for(encoding)
    drawing = picture.draw(asked.pixels, shades)
    left = picture.framed(drawing, is_plain=shades is picture.PLAIN_SHADES)
    right = [f"a held-out picture of a {asked.digit}"]
    for answer in given:
        right += ["", *_answer(answer, asked.digit)]
    width = max(len(line) for line in left)
    pairs = zip_longest(left, right, fillvalue="")
    return [f"{a:<{width}}   {b}".rstrip() for a, b in pairs]


def _answer(answer: Answer, truth: int) -> Iterator[str]:
    verdict = "right" if answer.digit == truth else "wrong"
    reason = answer.lines.get("x-sluice-reason", "")
    yield f"{answer.protocol}, {KEY_HEADER}: {answer.user}"
    yield f"  it is a {answer.digit} ({answer.probability:.1%}), {verdict}; {answer.took_ms:.1f} ms"
    yield f"  version {answer.version}, variant {answer.lines.get('x-sluice-variant', '-')}"
    yield f"  reason {reason}: {_REASONS.get(reason, 'not known here')}"


def record(prediction: LoggedPrediction) -> list[str]:
    """Return a prediction record, one aligned line per fact."""
    moment = datetime.fromtimestamp(prediction.ts_us / 1e6, UTC)
    rows = [
        ("request id", as_text(prediction.rid)),
        ("arrived", f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d} UTC"),
        ("asked for", f"{prediction.name}, route revision {prediction.revision}"),
        (
            "answered by",
            f"model {prediction.model}, version {prediction.version}, on {_device(prediction)}",
        ),
        ("variant", _variant(prediction)),
        ("status", f"{prediction.status}{prediction.error and ', ' + prediction.error}"),
        ("took", _took(prediction)),
    ]
    rows += [("input", _tensor(*item)) for item in prediction.inputs.items()]
    rows += [("output", _tensor(*item)) for item in prediction.outputs.items()]
    return [f"{label:<{_LABEL_WIDTH}}  {text}" for label, text in rows]


def _device(prediction: LoggedPrediction) -> str:
    return prediction.device or "an unnamed device"


def _variant(prediction: LoggedPrediction) -> str:
    return (
        f"{prediction.variant}, chosen with probability {prediction.propensity:g}, "
        f"reason {prediction.reason}"
    )


def _took(prediction: LoggedPrediction) -> str:
    rows = "1 row" if prediction.batch_rows == 1 else f"{prediction.batch_rows} rows"
    return (
        f"{prediction.total_us} us: {prediction.queue_us} queued, {prediction.infer_us} inferring, "
        f"{prediction.batch_us} copying, in a batch of {rows}"
    )


def _tensor(name: str, tensor: LoggedTensor) -> str:
    flat = tensor.array().reshape(-1)
    values = " ".join(f"{value:.2g}" for value in flat[:_VALUES_SHOWN].tolist())
    more = f" and {flat.size - _VALUES_SHOWN} more" if flat.size > _VALUES_SHOWN else ""
    return f"{name} {tensor.datatype} {list(tensor.shape)}: {values}{more}"
