"""A headless Chromium, for pages that a person will look at."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

CHROMIUM: Final = shutil.which("chromium") or shutil.which("google-chrome")
LIMIT_S: Final = 60.0
_OPTIONS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def dumped(page: Path, profile: Path) -> str:
    """Return the document that the browser made of a page."""
    return _run(profile, "--dump-dom", page.as_uri()).stdout


def pictured(page: Path, profile: Path, picture: Path, *options: str) -> None:
    """Write what the browser shows of a page as a PNG."""
    size = "--window-size=1100,1400"
    _run(profile, *options, size, f"--screenshot={picture}", page.as_uri())


def _run(profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    return subprocess.run(
        [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}", *options],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
