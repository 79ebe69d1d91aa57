"""Reads the prediction log: what came, one by one, and as tables with their completeness.

    from gateway.prediction_log import reader

    client = reader.connect("redis://127.0.0.1:6379/0")
    frame = reader.read_frame(client, "digits", since=..., until=...)
    print(frame.completeness.text())
    table = frame.pandas()

Synchronous, over a plain redis-py client; knows keys and entries, nothing of the gateway's process.
docs/prediction-log-reading.md shows how to use it.
"""

from gateway.prediction_log.reader.completeness import Completeness
from gateway.prediction_log.reader.entries import When, Window, connect, known_names, streams
from gateway.prediction_log.reader.export import export_parquet
from gateway.prediction_log.reader.extras import MissingExtra
from gateway.prediction_log.reader.following import find, tail
from gateway.prediction_log.reader.frame import Frame, read_frame
from gateway.prediction_log.reader.groups import Batch, GroupReader, GroupSettings
from gateway.prediction_log.reader.labels import LabelCoverage
from gateway.prediction_log.reader.reading import What
from gateway.prediction_log.reader.show import render_json, render_line
from gateway.prediction_log.streams import StreamKind

__all__ = [
    "Batch",
    "Completeness",
    "Frame",
    "GroupReader",
    "GroupSettings",
    "LabelCoverage",
    "MissingExtra",
    "StreamKind",
    "What",
    "When",
    "Window",
    "connect",
    "export_parquet",
    "find",
    "known_names",
    "read_frame",
    "render_json",
    "render_line",
    "streams",
    "tail",
]
