"""Reads JSON from a gateway by plain GET: metadata, routes, statistics, readiness.

Connects directly, whatever proxy the environment names. A gateway with TLS is one of our own on
this machine: its certificate is not verified.
"""

from __future__ import annotations

import json
import ssl
from http.client import HTTPException
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

TIMEOUT_S: Final = 5.0


class NoAnswer(Exception):
    """Nothing answered, or not as hoped; the sentence names the URL."""


def get_json(url: str) -> Any:  # Any: JSON
    """Return the JSON behind a URL.

    Raises:
        NoAnswer: no answer, an error, or no JSON.
    """
    try:
        return json.loads(get_text(url))
    except ValueError as exc:
        raise NoAnswer(f"{url}: {exc}") from exc


def get_text(url: str) -> str:
    """Return the text behind a URL.

    Raises:
        NoAnswer: no answer, or an error.
    """
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=unverified()))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            text: str = answer.read().decode()
            return text
    except HTTPError as exc:
        with exc:
            sentence = exc.read(300).decode(errors="replace")
        raise NoAnswer(f"{url} answered {exc.code}: {sentence}") from None
    except (OSError, HTTPException, ValueError) as exc:
        raise NoAnswer(f"{url}: {exc}") from exc


def unverified() -> ssl.SSLContext:
    """Return the context of a client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_ok(url: str) -> bool:
    """Whether a GET of the URL is answered with 200, whatever the body."""
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=unverified()))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):  # HTTPError and URLError are OSErrors
        return False


def answers(url: str) -> bool:
    """Whether a GET of the URL succeeds."""
    try:
        get_json(url)
    except NoAnswer:
        return False
    return True
