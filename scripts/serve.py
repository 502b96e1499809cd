"""Run the daemon and Gunicorn together in the foreground, for `scripts/serve`."""

from __future__ import annotations

import argparse
import ctypes
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
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 600.0
STOP_LIMIT_S = 40.0
SENTENCES = ["A man is eating food.", "A man eats something."]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1

Children = dict[str, "subprocess.Popen[bytes]"]


def main() -> int:
    """Start the daemon, then Gunicorn; check or serve; whatever happens, stop both."""
    options = _options()
    environment = dict(os.environ)
    # Ctrl-C, a TERM and a closed terminal all end in the same way; what nohup or a shell ignores stays ignored.
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        with ExitStack() as stack:
            environment["GPU_SERVER_ENDPOINT"] = _endpoint(stack, options.check)
            listener = stack.enter_context(_listen("127.0.0.1:0" if options.check else _bind()))
            return _run(stack, listener, environment, options)
    except KeyboardInterrupt:
        return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/serve", description="Run the daemon and Gunicorn together; Ctrl-C stops both."
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL",
        help="module:Class or a folder, seen from the current folder, or a hub id; all-MiniLM-L6-v2 if left out",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true", help="embed two sentences over HTTP, print their similarity, and stop"
    )
    return parser.parse_args()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _endpoint(stack: ExitStack, private: bool) -> str:
    from gpu_server import endpoint, errors

    if private:
        return f"ipc://{stack.enter_context(tempfile.TemporaryDirectory(prefix='gs-'))}/s"
    chosen = os.environ.get("GPU_SERVER_ENDPOINT") or endpoint.server_default()
    try:
        endpoint.check(chosen)
    except errors.EndpointError as error:
        sys.exit(f"scripts/serve: {error}")
    return chosen


def _bind() -> str:
    return os.environ.get("GPU_SERVER_WEB_BIND") or "127.0.0.1:8000"


def _listen(bind: str) -> socket.socket:
    """The web socket, made here so that a taken address is known before a model loads."""
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) > 65535:
        sys.exit(f"scripts/serve: GPU_SERVER_WEB_BIND: {bind!r} is not host:port")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        sys.exit(
            f"scripts/serve: cannot listen on {bind}: {reason}; set GPU_SERVER_WEB_BIND to another host:port"
        )


def _run(
    stack: ExitStack, listener: socket.socket, environment: dict[str, str], options: argparse.Namespace
) -> int:
    from gpu_server.client import Client

    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    children: Children = {}

    def start(name: str, *arguments: str, **how: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *arguments]
        children[name] = subprocess.Popen(command, env=environment, preexec_fn=_end_with(os.getpid()), **how)
        stack.callback(_stop, children[name])
        return children[name]

    daemon = start("the daemon", "gpu_server", "start", *options.models)
    with Client(environment["GPU_SERVER_ENDPOINT"], timeout_s=5.0) as client:
        _wait(lambda: _daemon_ready(client, daemon.pid), children)
    # Only now, so that nothing is logged after the message of a daemon that cannot serve.
    bind = f"fd://{listener.fileno()}"
    start("Gunicorn", "gunicorn", "--bind", bind, "web:app", cwd=ROOT, pass_fds=[listener.fileno()])
    _wait(lambda: _web_ready(url), children)
    if options.check:
        return _check(url)
    print(f"\nServing on {url}; Ctrl-C stops. Try, in another terminal:")
    print(
        f"""  curl {url}/embed -H 'content-type: application/json' -d '{{"inputs": "Hello"}}'""", flush=True
    )
    while True:
        _raise_if_ended(children)
        time.sleep(0.2)


def _end_with(parent: int) -> Callable[[], None]:
    """What a child runs first: ask the kernel for a SIGTERM when this process ends, even by SIGKILL."""

    def ask() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(0)

    return ask


def _wait(condition: Callable[[], bool], children: Children) -> None:
    give_up = time.monotonic() + START_LIMIT_S
    while not condition():
        _raise_if_ended(children)
        if time.monotonic() > give_up:
            sys.exit(f"scripts/serve: not ready after {START_LIMIT_S:.0f} s")
        time.sleep(0.1)
    _raise_if_ended(children)


def _raise_if_ended(children: Children) -> None:
    for name, process in children.items():
        if process.poll() is not None:
            print(f"scripts/serve: {name} ended with code {process.returncode}", file=sys.stderr)
            sys.exit(process.returncode if process.returncode > 0 else 1)


def _daemon_ready(client: Any, pid: int) -> bool:
    from gpu_server.errors import GPUServerError

    try:
        status = client.status()
    except GPUServerError:
        return False
    return bool(status.pid == pid and status.state == "ready")


def _web_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


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


def _stop(process: subprocess.Popen[bytes]) -> None:
    # A second signal must not interrupt this and leave a child behind; the children of a terminal get it themselves.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
