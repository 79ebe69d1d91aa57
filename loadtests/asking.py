"""Reads JSON from a gateway by plain GET: metadata, routes, statistics, readiness.

Connects directly, whatever proxy the environment names.
"""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

TIMEOUT_S: Final = 5.0


class NoAnswer(Exception):
    """Nothing answered, or not as hoped; the sentence names the URL."""


def get_json(url: str) -> Any:  # Any: JSON
    """Return the JSON behind a URL.

    Raises:
        NoAnswer: no answer, an error, or no JSON.
    """
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=TIMEOUT_S) as answer:
            return json.load(answer)
    except HTTPError as exc:
        with exc:
            sentence = exc.read(300).decode(errors="replace")
        raise NoAnswer(f"{url} answered {exc.code}: {sentence}") from None
    except (OSError, HTTPException, ValueError) as exc:
        raise NoAnswer(f"{url}: {exc}") from exc


def answers(url: str) -> bool:
    """Whether a GET of the URL succeeds."""
    try:
        get_json(url)
    except NoAnswer:
        return False
    return True
