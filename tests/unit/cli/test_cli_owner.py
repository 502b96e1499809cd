"""The verbs on the control socket: what they send, what they print, and that only a served endpoint takes them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from gpu_server.cli import main
from gpu_server.daemon.instance import control_endpoint
from gpu_server.errors import LoadFailed
from gpu_server.testing import FakeServer
from gpu_server.wire import VERSION, Limits, ReplyHeader, decode_request, document, encode_reply, error_reply
from gpu_server.wire.documents import QueueStatus, Status, to_json


class Owner:
    """A control socket that answers each verb with the status of a fake daemon, or with `refusal`."""

    def __init__(self, endpoint: str) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.refusal: LoadFailed | None = None
        self._server = FakeServer(endpoint=endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(control_endpoint(endpoint))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._socket.poll(20):
                peer, *frames = self._socket.recv_multipart()
                header, _ = decode_request(frames, Limits())
                self.asked.append((header.op, header.model, dict(header.params)))
                self._socket.send_multipart([peer, *self._answer(header.id)])

    def _answer(self, request_id: bytes) -> list[Any]:
        if self.refusal is not None:
            return error_reply(request_id, self.refusal.code, self.refusal.message)
        models = tuple(model.info for model in self._server.models.values())
        status = Status(
            version="1", pid=1, endpoint="ipc:///s", state="ready", models=models, queue=QueueStatus()
        )
        answer = document("document", to_json(status).decode())
        return encode_reply(ReplyHeader(v=VERSION, id=request_id), answer)

    def __enter__(self) -> Owner:
        self._server.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._server.__exit__(None, None, None)
        self._context.destroy(linger=0)


@pytest.fixture
def owner(own_endpoint: str) -> Iterator[Owner]:
    with Owner(own_endpoint) as made:
        yield made


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu-server", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "op", "model", "params"),
    [
        (["reload"], "reload", "", {"drain_first": False}),
        (["unload", "m", "--drain-first"], "unload", "m", {"drain_first": True}),
        (["load", "a.b:C"], "load", "", {"source": "a.b:C", "drain_first": False}),
        (
            ["load", "m=org/name", "--max-length", "12", "--dtype", "float16"],
            "load", "m", {"source": "org/name", "drain_first": False, "max_length": "12", "dtype": "float16"},
        ),
        (["drain"], "drain", "", {}),
        (["drain", "--undo"], "undrain", "", {}),
    ],
)  # fmt: skip
def test_what_each_verb_asks_for(
    monkeypatch: pytest.MonkeyPatch,
    owner: Owner,
    arguments: list[str],
    op: str,
    model: str,
    params: dict[str, Any],
) -> None:
    assert run(monkeypatch, *arguments) == 0
    assert owner.asked == [(op, model, params)]


def test_a_folder_is_named_as_the_daemon_finds_it(
    monkeypatch: pytest.MonkeyPatch, owner: Owner, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "load", "m=models") == 0
    assert owner.asked[0][2]["source"] == str(tmp_path / "models")


def test_a_change_prints_what_is_served_now(
    monkeypatch: pytest.MonkeyPatch, owner: Owner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "reload") == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["fake/embedding", "version"], ["echo", "version"],
    ]  # fmt: skip


def test_a_failed_change_is_one_line_and_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, owner: Owner, capsys: pytest.CaptureFixture[str]
) -> None:
    owner.refusal = LoadFailed("weights.bin is truncated")
    assert run(monkeypatch, "reload") == LoadFailed.exit_code
    assert capsys.readouterr() == ("", "gpu-server: weights.bin is truncated\n")


def test_without_a_daemon(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "reload") == 69
    assert capsys.readouterr().err.startswith("gpu-server: no gpu-server daemon at ipc://")
