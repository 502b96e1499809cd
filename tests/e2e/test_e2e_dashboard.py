"""The dashboard in a headless Chromium, over a running daemon and Gunicorn."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from running_daemon import RunningDaemon, until
from running_gunicorn import RunningGunicorn

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=3000",
    "--enable-logging=stderr", "--dump-dom",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


def opened(url: str, folder: Path) -> tuple[str, list[str]]:
    """The page as it stands after its first answers, and what the browser says of scripts and policies."""
    done = subprocess.run(
        [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}", url], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_page_draws_what_the_daemon_did(
    web: RunningGunicorn, minilm: RunningDaemon, tmp_path: Path
) -> None:
    status, _ = web.ask("POST", "/embed", {"inputs": ["a text", "another"]})
    assert status == 200
    until(lambda: any(p.requests for p in minilm.client.history().points), "a point with the request")
    page, complaints = opened(f"{web.url}/dashboard", tmp_path)
    assert complaints == []
    assert re.search(r'id="state"[^>]*data-good="true"[^>]*>ready<', page)
    drawn = dict(
        re.findall(r'<figure data-plot="([^"]+)".*?<path [^>]*stroke="var\(--c0\)"[^>]*d="([^"]*)"', page)
    )
    shown = [name for name in drawn if f'data-plot="{name}" hidden' not in page]
    assert {"Throughput", "Latency", "Queue", "Batch size", "Memory", "Web workers"} <= set(shown)
    # The line of the requests leaves the ground at one point at least.
    assert any(float(y) < 90 for y in re.findall(r"[ML][\d.]+ ([\d.]+)", drawn["Throughput"]))
    assert re.search(r'aria-label="Latency: p50 [\d.]+ ms, p95', page)
    assert minilm.client.model().name in page.split("<tbody>")[1]


def test_a_page_without_the_key_asks_for_it(minilm: RunningDaemon, tmp_path: Path) -> None:
    with RunningGunicorn(minilm.endpoint, workers=1, GPU_SERVER_WEB_API_KEYS="me:secret") as web:
        page, _ = opened(f"{web.url}/dashboard", tmp_path)
    assert re.search(r'<form id="login">', page)
    assert "a valid API key is needed" in page
