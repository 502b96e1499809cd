"""Run the daemon and Gunicorn together in the foreground, for `scripts/serve`."""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import secrets
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
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

if TYPE_CHECKING:
    from gpu_server.client import Client
    from gpu_server.wire.documents import ModelInfo

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 600.0
STOP_LIMIT_S = 40.0
SENTENCES = ["A man is eating food.", "A man eats something."]
SHOWN_CHARACTERS = 300
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1

EXAMPLES = {
    "embedding": ("embed", {"inputs": "Hello"}),
    "sparse": ("embed_sparse", {"inputs": "Hello"}),
    "reranker": ("rerank", {"query": "What do men eat?", "texts": SENTENCES}),
    "classifier": ("predict", {"inputs": "I like it."}),
    "token_classifier": ("token_classification", {"inputs": "Ada Lovelace lived in London."}),
}

Children = dict[str, "subprocess.Popen[bytes]"]
T = TypeVar("T")


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
        "--check", action="store_true",
        help="send one request over HTTP, print what is answered (of embeddings, how similar two are), and stop",
    )  # fmt: skip
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
    from gpu_server import Client

    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    children: Children = {}
    key = _add_key(environment) if options.check else ""

    def start(name: str, *arguments: str, **how: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *arguments]
        children[name] = subprocess.Popen(command, env=environment, preexec_fn=_end_with(os.getpid()), **how)
        stack.callback(_stop, children[name])
        return children[name]

    daemon = start("the daemon", "gpu_server", "start", *options.models)
    with Client(environment["GPU_SERVER_ENDPOINT"], timeout_s=5.0) as client:
        model = _wait(lambda: _first_model(client, daemon.pid), children)
    # Only now, so that nothing is logged after the message of a daemon that cannot serve.
    bind = f"fd://{listener.fileno()}"
    start("Gunicorn", "gunicorn", "--bind", bind, "web:app", cwd=ROOT, pass_fds=[listener.fileno()])
    _wait(lambda: _web_ready(url), children)
    if options.check:
        return _check(url, model, key)
    print(f"\nServing on {url}; Ctrl-C stops. Try, in another terminal, or at {url}/docs:")
    print(f"  {example(url, model)}", flush=True)
    while True:
        _raise_if_ended(children, serving=True)
        time.sleep(0.2)


def example(url: str, model: ModelInfo) -> str:
    """A command to try a model with, of the route that its kind has."""
    if model.kind in EXAMPLES:
        path, body = EXAMPLES[model.kind]
        return f"curl -s {url}/{path} -H 'content-type: application/json' -d '{json.dumps(body)}'"
    name = quote(model.name)
    if not _fillable(model):
        return f"curl -s {url}/v2/models/{name}"
    items = ", ".join(f'"{one.name}": [{_item(one.dtype, one.shape)}]' for one in model.inputs)
    body_of = f'import json; print(json.dumps({{"inputs": {{{items}}}}}))'
    post = f"curl -s {url}/v1/models/{name}/infer -H 'content-type: application/json' -d @-"
    return f"python3 -c '{body_of}' | {post}"


def _fillable(model: ModelInfo) -> bool:
    """Whether its declaration is enough to make inputs that fit it."""
    return bool(model.inputs) and all(one.dtype != "bytes" for one in model.inputs)


def _item(dtype: str, shape: tuple[int, ...]) -> str:
    """A Python expression of an item that fits a declaration."""
    item = '"Hello"' if dtype == "utf8" else "0"
    for size in reversed(shape):
        item = f"[{item}]" if size in (-1, 1) else f"[{item}] * {size}"
    return item


def _end_with(parent: int) -> Callable[[], None]:
    """What a child runs first: ask the kernel for a SIGTERM when this process ends, even by SIGKILL."""

    def ask() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(0)

    return ask


def _wait(condition: Callable[[], T | None], children: Children) -> T:
    """What `condition()` returns, once that is true."""
    give_up = time.monotonic() + START_LIMIT_S
    while not (found := condition()):
        _raise_if_ended(children)
        if time.monotonic() > give_up:
            sys.exit(f"scripts/serve: not ready after {START_LIMIT_S:.0f} s")
        time.sleep(0.1)
    _raise_if_ended(children)
    return found


def _raise_if_ended(children: Children, serving: bool = False) -> None:
    for name, process in children.items():
        code = process.poll()
        if code == 0 and serving:
            print(f"scripts/serve: {name} was stopped, so both end", file=sys.stderr)
            sys.exit(0)
        if code is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            print(f"scripts/serve: {name} {how}", file=sys.stderr)
            sys.exit(max(code, 0) or 1)


def _first_model(client: Client, pid: int) -> ModelInfo | None:
    """The default model of the daemon with that pid, None until it is ready."""
    from gpu_server.errors import GPUServerError

    try:
        status = client.status()
    except GPUServerError:
        return None
    return status.models[0] if status.pid == pid and status.state == "ready" else None


def _web_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _add_key(environment: dict[str, str]) -> str:
    """Where keys are asked for, add one for this run alone: of those that are set only digests may be known."""
    listed = environment.get("GPU_SERVER_WEB_API_KEYS", "")
    if not listed and not environment.get("GPU_SERVER_WEB_API_KEYS_FILE"):
        return ""
    key = secrets.token_hex(16)
    environment["GPU_SERVER_WEB_API_KEYS"] = f"{listed},scripts/serve:{key}"
    return key


def _check(url: str, model: ModelInfo, key: str) -> int:
    path, body = ("embed", {"inputs": SENTENCES}) if model.kind == "embedding" else _trial(model)
    answer = _ask(f"{url}/{path}", body, key)
    if model.kind != "embedding":
        print(f"{url}/{path} answered {_shown(json.dumps(answer))}")
        return 0
    first, second = answer
    similarity = sum(a * b for a, b in zip(first, second, strict=True)) / (
        math.hypot(*first) * math.hypot(*second)
    )
    print(f"{url}/embed answered {len(first)} dimensions")
    print(f"similarity of {SENTENCES[0]!r} and {SENTENCES[1]!r}: {similarity:.4f}")
    return 0


def _ask(url: str, body: object, key: str) -> Any:
    """The answer to a POST, or without a body to a GET; one line, and the end, where there is none."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        sys.exit(
            f"scripts/serve: {url} answered {error.code}: {_shown(error.read().decode(errors='replace'))}"
        )
    except OSError as error:
        sys.exit(f"scripts/serve: {url} does not answer: {error}")


def _trial(model: ModelInfo) -> tuple[str, object]:
    """Path and body of the request that `example` shows; without a body it is a GET."""
    if model.kind in EXAMPLES:
        return EXAMPLES[model.kind]
    if not _fillable(model):
        return f"v2/models/{quote(model.name)}", None
    inputs = {one.name: [_value(one.dtype, one.shape)] for one in model.inputs}
    return f"v1/models/{quote(model.name)}/infer", {"inputs": inputs}


def _value(dtype: str, shape: tuple[int, ...]) -> object:
    """An item that fits a declaration."""
    item: object = "Hello" if dtype == "utf8" else 0
    for size in reversed(shape):
        item = [item] * max(size, 1)
    return item


def _shown(text: str) -> str:
    """A text on one line, and not too much of it."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]} …"


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
