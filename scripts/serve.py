"""Run the daemon and Gunicorn together in the foreground, for `scripts/serve`."""

from __future__ import annotations

import argparse
import ctypes
import fcntl
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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from difflib import get_close_matches
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from shlex import quote as shell_quote
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

if TYPE_CHECKING:
    from gpu_server.client import Client
    from gpu_server.wire.documents import ModelInfo

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 600.0
STOP_LIMIT_S = 40.0
BACKLOG = 2048
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
            addresses = _addresses()
            environment["GPU_SERVER_ENDPOINT"] = _endpoint(stack, options.check)
            listeners = [_listen(stack, one) for one in (["127.0.0.1:0"] if options.check else addresses)]
            return _run(stack, listeners, environment, options)
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
    options, unknown = parser.parse_known_intermixed_args()
    if unknown:
        near = get_close_matches(unknown[0], ["--check", "--help"], 1)
        parser.error(f"No such option {unknown[0]!r}.{f' Did you mean {near[0]!r}?' if near else ''}")
    return options


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
        print(f"scripts/serve: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    return chosen


def _addresses() -> list[str]:
    """Where the web is to be served; ends, as Gunicorn would after the model's load, on a wrong GPU_SERVER_WEB_*."""
    from web import serving

    return serving.bind


def _listen(stack: ExitStack, address: str) -> socket.socket:
    """A web socket, made here so that a taken address is known before a model loads."""
    from gunicorn.util import parse_address

    where = parse_address(address)
    try:
        if isinstance(where, str):
            return _listen_at(stack, os.path.abspath(where))
        if isinstance(where, int):
            return stack.enter_context(socket.socket(fileno=where))
        family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        return stack.enter_context(socket.create_server(where, family=family, backlog=BACKLOG))
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        sys.exit(f"scripts/serve: cannot listen on {address}: {reason}; {_elsewhere(address)}")


def _listen_at(stack: ExitStack, path: str) -> socket.socket:
    """A Unix socket, open to all as Gunicorn's are by default, in the place of one that nobody serves any more."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        # One that starts at the same time must not find this one between its name and its listening.
        fcntl.flock(folder, fcntl.LOCK_EX)
        if _is_left(path):
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o777)
        listener.listen(BACKLOG)
    finally:
        os.close(folder)
    stack.callback(_remove, path, os.stat(path))
    return listener


def _is_left(path: str) -> bool:
    """Whether a Unix socket is there that nobody listens at."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return Path(path).is_socket()
        except OSError:
            pass
        return False


def _remove(path: str, made: os.stat_result) -> None:
    """Remove a Unix socket unless Gunicorn has, and another stands in its place already."""
    with suppress(FileNotFoundError):
        if os.path.samestat(made, os.stat(path)):
            os.unlink(path)


def _elsewhere(address: str) -> str:
    from web.serving import settings
    from web.settings import variable_of

    name = "metrics_bind" if address == settings.metrics_bind else "bind"
    return f"set {variable_of(name)} to another address"


def _run(
    stack: ExitStack,
    listeners: Sequence[socket.socket],
    environment: dict[str, str],
    options: argparse.Namespace,
) -> int:
    from gpu_server import Client

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
    numbers = [listener.fileno() for listener in listeners]
    start(
        "Gunicorn", "gunicorn", *(f"--bind=fd://{n}" for n in numbers), "web:app", cwd=ROOT, pass_fds=numbers
    )
    _wait(lambda: _web_ready(listeners[0]), children)
    if options.check:
        return _check(_url(listeners[0].getsockname()), model, key)
    _say_where([listener.getsockname() for listener in listeners], model)
    while True:
        _raise_if_ended(children, serving=True)
        time.sleep(0.2)


def _say_where(addresses: Sequence[Any], model: ModelInfo) -> None:
    """Print where it serves, and a command to try at the first address."""
    names = [os.fsdecode(one) if isinstance(one, str | bytes) else "" for one in addresses]
    shown = [f"unix:{name}" if name else _url(one) for name, one in zip(names, addresses, strict=True)]
    if names[0]:
        pages, url = "", f"--unix-socket {shell_quote(names[0])} http://localhost"
    else:
        pages, url = f", or at {shown[0]}/docs", shown[0]
    print(f"\nServing on {' and '.join(shown)}; Ctrl-C stops. Try, in another terminal{pages}:")
    print(f"  {example(url, model)}", flush=True)


def _url(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def example(url: str, model: ModelInfo) -> str:
    """A command to try a model with, of the route that its kind has; url: as curl is given it."""
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


def _web_ready(listener: socket.socket) -> bool:
    """Whether the web answers that it is ready, asked at the listener's own address."""
    try:
        with socket.socket(listener.family) as asking:
            asking.settimeout(5)
            asking.connect(listener.getsockname())
            connection = HTTPConnection("localhost")
            connection.sock = asking
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
    except (HTTPException, OSError):
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
