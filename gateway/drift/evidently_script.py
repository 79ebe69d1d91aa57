"""Runs in the environment of Evidently, not in the gateway's: two Parquet files to its HTML page.

Arguments: reference, window, page. Prints one JSON object: columns that drift by Evidently's own
rules, and all that it looked at. Imports nothing of the gateway.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any


def main(reference_path: str, window_path: str, page_path: str) -> None:
    """Write the page and print the verdict."""
    # Any: neither is installed where this file is checked.
    pandas: Any = import_module("pandas")
    evidently: Any = import_module("evidently")
    presets: Any = import_module("evidently.presets")
    reference, window = pandas.read_parquet(reference_path), pandas.read_parquet(window_path)
    snapshot = evidently.Report([presets.DataDriftPreset()]).run(window, reference)
    snapshot.save_html(page_path)
    counts = next(
        metric["value"]
        for metric in snapshot.dict()["metrics"]
        if isinstance(metric["value"], dict) and "share" in metric["value"]
    )
    sys.stdout.write(json.dumps({"drifted": int(counts["count"]), "columns": len(window.columns)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
