"""Every way Gunicorn makes workers gives right answers, and forks may happen at any moment."""

from __future__ import annotations

import itertools
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from corpus import Comparison, batches
from running_daemon import RunningDaemon, until
from running_gunicorn import CLASSES, RunningGunicorn

PRELOAD = pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])


def embed_everything(web: RunningGunicorn, compare: Comparison) -> None:
    """A sixth of the corpus, from eight callers at a time."""
    cut = batches(seed=7, largest=3)[::6]
    assert len(cut) > 8
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda texts: web.ask("POST", "/embed", {"inputs": texts}), cut)
        for texts, (status, rows) in zip(cut, answers, strict=True):
            assert status == 200, rows
            compare(texts, rows)


@PRELOAD
@pytest.mark.parametrize("worker_class", CLASSES)
def test_right_answers(
    minilm: RunningDaemon, assert_equal_reference: Comparison, worker_class: str, preload: tuple[str, ...]
) -> None:
    with RunningGunicorn(minilm.endpoint, *CLASSES[worker_class], *preload) as web:
        embed_everything(web, assert_equal_reference)
        assert web.stop() == 0
    assert "Traceback" not in "".join(web.log)
    assert any(f"Using worker: {worker_class}" in line for line in web.log)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_call_before_the_fork_harms_no_worker(
    minilm: RunningDaemon, assert_equal_reference: Comparison, tmp_path: Path, worker_class: str
) -> None:
    """The master has tokenised and has a live connection when it forks; each worker makes its own."""
    (tmp_path / "early_app.py").write_text(
        "from web import app\nfrom web.backend import get_client\n"
        "with app.app_context():\n    assert get_client().embed(['before', 'the fork']).shape[0] == 2\n"
    )
    options = [*CLASSES[worker_class], "--preload", "--pythonpath", str(tmp_path)]
    with RunningGunicorn(minilm.endpoint, *options, app="early_app:app") as web:
        embed_everything(web, assert_equal_reference)
        assert web.stop() == 0
    assert "Traceback" not in "".join(web.log)


class Load:
    """Callers that post a nonce each time and compare the answer, until told to stop; `seen` counts what came of it.

    A request is made again, and counted as `dropped`, only if Gunicorn closed its connection without a byte of an answer.
    """

    def __init__(self, web: RunningGunicorn, callers: int) -> None:
        self.seen: Counter[str] = Counter()
        self._web = web
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(callers)
        self._callers = [self._pool.submit(self._call, number) for number in range(callers)]

    def has_answers(self, answers: int) -> bool:
        """Whether at least so many were right."""
        return self.seen["right"] >= answers

    def stop(self) -> None:
        """End every caller after its current request; raises what one of them raised."""
        self._stop.set()
        self._pool.shutdown()
        for caller in self._callers:
            caller.result()

    def _call(self, caller: int) -> None:
        for nonce in itertools.count(caller * 1_000_000):
            if self._stop.is_set():
                return
            while (outcome := self._ask(nonce)) == "dropped":
                self.seen["dropped"] += 1
            self.seen[outcome] += 1

    def _ask(self, nonce: int) -> str:
        body = {"inputs": {"x": [[nonce % 97] * 8], "nonce": [nonce]}}
        try:
            status, answer = self._web.ask("POST", "/v1/models/Linear/infer", body)
        except ConnectionError:
            return "dropped"
        if status != 200:
            return f"{status} {answer}"
        return "right" if answer["outputs"]["nonce"] == [nonce] else "mismatched"


@pytest.mark.parametrize("worker_class", CLASSES)
def test_workers_come_and_go_under_load(linear: RunningDaemon, worker_class: str) -> None:
    """Workers end after 20 requests and all are replaced twice; every request that reached one is answered, and rightly.

    That Gunicorn drops connections it has accepted but not read, when a worker ends, is its own way; the daemon's count
    shows that no such request had got as far as the app. The short graceful time-out is for a worker that is told to end
    before it listens to signals: Gunicorn waits for it that long.
    """
    options = [*CLASSES[worker_class], "--preload", "--max-requests", "20", "--graceful-timeout", "3"]
    before = linear.client.status().counters["requests"]
    with RunningGunicorn(linear.endpoint, *options, workers=4) as web:
        load = Load(web, callers=8)
        try:
            for answers in (150, 300):
                until(partial(load.has_answers, answers), f"{answers} answers")
                web.process.send_signal(signal.SIGHUP)
                web.wait_for("Hang up")
            until(partial(load.has_answers, 450), "answers after both reloads")
        finally:
            load.stop()
        served = set(web.served_by())
    dropped = load.seen.pop("dropped", 0)
    assert set(load.seen) == {"right"}
    assert linear.client.status().counters["requests"] - before == load.seen["right"]
    assert dropped < load.seen["right"] / 20
    assert len(served) >= 8
    assert "Traceback" not in "".join(web.log)
