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
from router import document
from router.policy import CompiledRoute

_LABEL_WIDTH: Final = 11
_VALUES_SHOWN: Final = 10
_REASONS: Final = {
    "slot": "the hash of the key decides, so that a user stays with one variant",
    "random": "there was no key, so that chance decides",
    "fallback": "the variant that the key gives is not ready, so that another one serves",
    "model": "there is no route of that name, so that the model's newest version serves",
}


def split(compiled: CompiledRoute | None) -> Iterator[str]:
    """Yield who gets which share now; it may differ from the configuration's after a change."""
    if compiled is None:
        yield "the route was deleted: the model's newest version answers"
        return
    route = compiled.route
    shares = ", ".join(
        f"{document.percent(v.slots)} % to {v.name} (version {v.version})" for v in route.variants
    )
    yield f"route {route.name!r}, revision {route.revision}: {shares}"


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


def reasons(given: Sequence[Answer]) -> list[str]:
    """Return what the reasons mean that the answers name, each once."""
    named = dict.fromkeys(answer.lines.get("x-sluice-reason", "") for answer in given)
    return [f"reason {reason}: {_REASONS[reason]}" for reason in named if reason in _REASONS]


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{share * 100:.1f} %"


def _answer(answer: Answer, truth: int) -> Iterator[str]:
    verdict = "right" if answer.digit == truth else "wrong"
    variant = answer.lines.get("x-sluice-variant", "none")
    reason = answer.lines.get("x-sluice-reason", "none")
    yield f"{answer.protocol}, {KEY_HEADER}: {answer.user}"
    yield (
        f"  answer {answer.digit} ({percent(answer.probability)}), {verdict}, "
        f"in {answer.took_ms:.1f} ms"
    )
    yield f"  version {answer.version}, variant {variant}, reason {reason}"


def record(prediction: LoggedPrediction) -> list[str]:
    """Return a prediction record, one aligned line per fact and a second for many values."""
    moment = datetime.fromtimestamp(prediction.ts_us // 1_000_000, UTC)
    ms = prediction.ts_us // 1_000 % 1_000
    rows = [
        ("request id", as_text(prediction.rid)),
        ("arrived", f"{moment:%Y-%m-%d %H:%M:%S}.{ms:03d} UTC"),
        ("asked for", f"{prediction.name}, revision {prediction.revision} of the route"),
        ("answered by", f"model {prediction.model}, version {prediction.version}"),
        ("device", prediction.device or "not known"),
        ("variant", _variant(prediction)),
        ("status", f"{prediction.status} {prediction.error}".rstrip()),
        ("took", _took(prediction)),
    ]
    for side, tensors in (("input", prediction.inputs), ("output", prediction.outputs)):
        for name, tensor in tensors.items():
            rows += [(side, f"{name} {tensor.datatype} {list(tensor.shape)}")]
            rows += [("", _values(tensor))]
    return [f"{label:<{_LABEL_WIDTH}}  {text}" for label, text in rows]


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


def _values(tensor: LoggedTensor) -> str:
    flat = tensor.array().reshape(-1)
    first = flat[:_VALUES_SHOWN].tolist()
    form = "g" if all(value == int(value) for value in first) else ".3f"
    shown = " ".join(format(value, form) for value in first)
    return f"{shown} and {flat.size - len(first)} more" if flat.size > len(first) else shown
