"""Run the daemon and Gunicorn together in the foreground, for `scripts/serve`."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 600.0
SENTENCES = ["A man is eating food.", "A man eats something."]


def main(arguments: list[str]) -> int:
    """Start both, wait until they answer, then check or serve; whatever happens, stop both."""
    check = "--check" in arguments
    models = [a for a in arguments if a != "--check"]
    with tempfile.TemporaryDirectory(prefix="gpu-server-") as folder:
        environment = dict(os.environ)
        if check or "GPU_SERVER_ENDPOINT" not in environment:
            environment["GPU_SERVER_ENDPOINT"] = f"ipc://{folder}/gpu-server.sock"
        bind = (
            f"127.0.0.1:{_free_port()}" if check else environment.get("GPU_SERVER_WEB_BIND", "127.0.0.1:8000")
        )
        daemon = subprocess.Popen([sys.executable, "-m", "gpu_server", "start", *models], env=environment)
        web = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--bind", bind, "web:app"], env=environment, cwd=ROOT
        )
        try:
            return _serve(daemon, web, f"http://{bind}", check)
        except KeyboardInterrupt:
            return 0
        finally:
            _stop(web)
            _stop(daemon)


def _serve(daemon: subprocess.Popen[bytes], web: subprocess.Popen[bytes], url: str, check: bool) -> int:
    give_up = time.monotonic() + START_LIMIT_S
    while not _ready(url):
        for process, name in ((daemon, "the daemon"), (web, "Gunicorn")):
            if process.poll() is not None:
                print(f"{name} ended with code {process.returncode}", file=sys.stderr)
                return process.returncode or 1
        if time.monotonic() > give_up:
            print(f"not ready after {START_LIMIT_S:.0f} s", file=sys.stderr)
            return 1
        time.sleep(0.1)
    if check:
        return _check(url)
    print(f"\nServing on {url}; Ctrl-C stops. Try:")
    print(
        f"""  curl {url}/embed -H 'content-type: application/json' -d '{{"inputs": "Hello"}}'""", flush=True
    )
    while True:
        for process in (daemon, web):
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                continue


def _check(url: str) -> int:
    body = json.dumps({"inputs": SENTENCES}).encode()
    request = urllib.request.Request(f"{url}/embed", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        first, second = json.load(reply)
    similarity = sum(a * b for a, b in zip(first, second, strict=True)) / (
        math.hypot(*first) * math.hypot(*second)
    )
    print(f"{url}/embed answered {len(first)} dimensions")
    print(f"similarity of {SENTENCES[0]!r} and {SENTENCES[1]!r}: {similarity:.4f}")
    return 0


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
