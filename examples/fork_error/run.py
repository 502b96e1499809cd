"""Run naive.py and fixed.py under `gunicorn -w 4 --preload` and show what each answers: `python run.py`."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import minilm
import torch

HERE = Path(__file__).resolve().parent
FORK_ERROR = "Cannot re-initialize CUDA in forked subprocess"
BODY = json.dumps({"texts": ["A man is eating food.", "A man eats something."]}).encode()
START_LIMIT_S = 300


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="fork-") as folder:
        if torch.cuda.is_available():
            show_naive(Path(folder))
        else:
            print("No CUDA device: naive.py needs one, so only fixed.py is run.\n")
        show_fixed(Path(folder))


def show_naive(folder):
    print("$ gunicorn -w 4 --preload naive:app")
    with gunicorn("naive:app", folder / "naive.log") as (url, log):
        status, _ = post(url)
        found = re.search(rf"RuntimeError: {FORK_ERROR}.*", log.read_text())
        print(f"POST /embed: {status}\n{found[0] if found else log.read_text()}\n")
        check(status == 500 and found, "naive.py did not fail as described")


def show_fixed(folder):
    os.environ["GPU_SERVER_ENDPOINT"] = f"ipc://{folder}/s.sock"
    print(f"$ gpu-server start {minilm.folder()}\n$ gunicorn -w 4 --preload fixed:app")
    daemon = subprocess.Popen(
        [sys.executable, "-m", "gpu_server", "start", minilm.folder()], env=environment()
    )
    try:
        wait_ready(daemon)
        with gunicorn("fixed:app", folder / "fixed.log") as (url, log):
            status, body = post(url)
            check(status == 200, f"fixed.py answered {status}: {log.read_text()}")
            rows = json.loads(body)["embeddings"]
            print(f"POST /embed: {status}, {len(rows)} embeddings of {len(rows[0])} dimensions")
            print(f"similarity: {sum(a * b for a, b in zip(*rows, strict=True)):.4f}")
    finally:
        stop(daemon)


@contextmanager
def gunicorn(app, log):
    """A Gunicorn with four forked workers; yields its URL and its log."""
    command = [sys.executable, "-m", "gunicorn", "-w", "4", "--preload", "-b", "127.0.0.1:0", app]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=HERE, env=environment(), stdout=out, stderr=out)
    try:
        found = wait_for(lambda: re.search(r"Listening at: (http://\S+)", log.read_text()), process, log)
        yield found[1], log
    finally:
        stop(process)


def environment():
    """This process's environment, with the checkout importable where the package is not installed."""
    root = str(HERE.parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def wait_ready(daemon):
    command = [sys.executable, "-m", "gpu_server", "status"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment()}
    wait_for(lambda: subprocess.run(command, **quiet).returncode == 0, daemon)


def wait_for(condition, process, log=None):
    give_up = time.monotonic() + START_LIMIT_S
    while not (value := condition()):
        running = process.poll() is None and time.monotonic() < give_up
        check(running, f"it did not start: {log.read_text() if log else 'see above'}")
        time.sleep(0.1)
    return value


def post(url):
    request = urllib.request.Request(f"{url}/embed", BODY, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def check(good, message):
    if not good:
        raise SystemExit(message)


def stop(process):
    process.terminate()
    process.wait(timeout=60)


if __name__ == "__main__":
    main()
