"""The owner's socket over a supervisor of fake engines: who may connect, what each verb does, and that each is answered."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from supervisor_world import World, specs

from gpu_server.daemon.control import Control
from gpu_server.errors import EndpointError
from gpu_server.logs import Formatter
from gpu_server.wire import ReplyHeader, RequestHeader, decode_reply, document, encode_request

HERE = (os.geteuid(),)
POLL_MS = 5000
SOURCE = "test_daemon_control:Anything"


class Anything:
    """A class that `load` can name."""

    def load(self, device: object) -> None: ...

    def forward(self, batch: object) -> None: ...


class Owner:
    """A control socket, and a client of it. `drained` is what drain and undrain have said."""

    def __init__(self, folder: Path, uids: tuple[int, ...] = HERE) -> None:
        self.world = World()
        self.world.become_ready()
        self.path = folder / "s.ctl"
        self.drained: list[bool] = []
        self.context = zmq.Context()
        self.control = Control(
            self.context,
            f"ipc://{self.path}",
            self.world.supervisor,
            self.world.clock,
            document=lambda: document("document", "status"),
            on_drain=self.drained.append,
            owners=uids,
        )
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(f"ipc://{self.path}")

    def say(self, op: str, id: bytes = b"1", **header: Any) -> None:  # noqa: A002 - the protocol's word
        self.send(encode_request(RequestHeader(v=1, id=id, op=op, **header)))

    def send(self, frames: list[Any]) -> None:
        self.socket.send_multipart(frames)
        assert self.control.socket.poll(POLL_MS)
        self.control.receive()

    def reply(self) -> ReplyHeader:
        assert self.socket.poll(POLL_MS), "no reply"
        return decode_reply(self.socket.recv_multipart())[0]

    def refusal(self) -> tuple[str, str]:
        error = self.reply().error
        assert error, "a good reply"
        return error.code, error.message

    def names(self) -> list[str]:
        """The models of the newest engine."""
        return list(self.world.link.models)

    def finish(self) -> None:
        self.world.become_ready()
        self.world.poll()

    def close(self) -> None:
        self.socket.close()
        self.control.close(linger_ms=0)
        self.context.term()


@pytest.fixture
def owner(socket_folder: Path) -> Iterator[Owner]:
    made = Owner(socket_folder)
    yield made
    made.close()


def test_the_socket_is_for_its_owner_alone(owner: Owner) -> None:
    assert stat.S_IMODE(owner.path.stat().st_mode) == 0o600


def test_a_process_of_another_user_is_not_heard(socket_folder: Path) -> None:
    made = Owner(socket_folder, uids=(os.geteuid() + 1,))
    made.socket.send_multipart(encode_request(RequestHeader(v=1, id=b"1", op="reload")))
    assert not made.control.socket.poll(300)
    made.close()


def test_a_path_that_cannot_be_bound(socket_folder: Path) -> None:
    world = World()
    with zmq.Context() as context, pytest.raises(EndpointError, match="cannot bind ipc://"):
        Control(
            context, f"ipc://{socket_folder}/missing/s.ctl", world.supervisor, world.clock,
            document=lambda: {}, on_drain=lambda refuse: None, owners=HERE,
        )  # fmt: skip


def test_reload_is_answered_when_the_new_engine_has_taken_over(owner: Owner) -> None:
    owner.say("reload")
    assert (owner.names(), len(owner.world.links), owner.socket.poll(0)) == (["m"], 2, 0)
    owner.finish()
    assert owner.reply().id == b"1"


def test_load_and_unload_change_the_set(owner: Owner) -> None:
    owner.say("load", model="n", params={"source": SOURCE})
    assert owner.names() == ["m", "n"]
    owner.finish()
    owner.reply()
    owner.say("unload", model="m")
    assert owner.names() == ["n"]
    owner.finish()
    owner.reply()
    assert [spec.name for spec in owner.world.supervisor.models] == ["n"]


@pytest.mark.parametrize(("name", "shown"), [("", SOURCE), ("n", "n")])
def test_the_log_says_what_load_was_asked_for_and_no_more(
    owner: Owner, caplog: pytest.LogCaptureFixture, name: str, shown: str
) -> None:
    caplog.set_level("INFO", "gpu_server")
    owner.say("load", model=name, params={"source": SOURCE, "dtype": "float16", "token": "hf_secret"})
    assert owner.refusal()[0] == "invalid_request"
    lines = [Formatter("daemon", as_json=False).format(record) for record in caplog.records]
    assert lines[0].endswith(f" control verb=load model={shown} source={SOURCE} dtype=float16")
    assert "hf_secret" not in "".join(lines)


def test_drain_first_ends_the_old_engine_before(owner: Owner) -> None:
    owner.say("reload", params={"drain_first": True})
    assert (owner.world.held, len(owner.world.links)) == (1, 1)


def test_a_failed_change_is_answered_with_its_reason(owner: Owner) -> None:
    owner.say("reload")
    owner.world.fail("weights.bin is truncated", permanent=True)
    assert owner.refusal() == ("load_failed", "weights.bin is truncated")
    assert owner.world.supervisor.link is owner.world.links[0]


def test_a_change_that_fails_at_once_is_answered_too(owner: Owner) -> None:
    owner.world.no_process = True
    owner.say("reload")
    assert owner.refusal()[0] == "load_failed"
    owner.world.no_process = False
    owner.say("reload")
    owner.finish()
    assert owner.reply().error is msgspec.UNSET


@pytest.mark.parametrize(
    ("op", "header", "code", "reason"),
    [
        ("infer", {}, "unsupported_operation", "'infer' is not offered on the control socket"),
        ("unload", {"model": "nope"}, "model_not_found", "'nope' is not served; served: m"),
        ("unload", {"model": "m"}, "invalid_request", "the only model"),
        (
            "load",
            {"params": {"source": "no_such_module:A"}},
            "load_failed",
            "module 'no_such_module' was not found",
        ),
        ("load", {"params": {"source": "a:b:c"}}, "invalid_request", "is not module:Class"),
        ("load", {"params": {"source": SOURCE, "wrong": 1}}, "invalid_request", "'wrong' is no setting"),
        ("reload", {"params": {"wrong": 1}}, "invalid_request", "reload has no parameter 'wrong'"),
        ("reload", {"params": {"drain_first": 1}}, "invalid_request", "drain_first must be a bool"),
    ],
)
def test_what_is_refused_at_once(
    owner: Owner, op: str, header: dict[str, Any], code: str, reason: str
) -> None:
    owner.say(op, **header)
    got = owner.refusal()
    assert (got[0], reason in got[1]) == (code, True)
    assert len(owner.world.links) == 1


def test_a_second_change_is_a_conflict_and_the_first_goes_on(owner: Owner) -> None:
    owner.say("reload", b"1")
    owner.say("reload", b"2")
    assert owner.refusal()[0] == "conflict"
    owner.finish()
    assert owner.reply().id == b"1"


def test_a_caller_is_answered_at_its_deadline_and_the_change_goes_on(owner: Owner) -> None:
    owner.say("reload", deadline_ms=1000)
    assert owner.control.next_deadline() == owner.world.clock.now + 1
    owner.control.expire()
    assert owner.socket.poll(0) == 0
    owner.world.clock.advance(1)
    owner.control.expire()
    assert owner.refusal()[0] == "deadline_exceeded"
    owner.finish()
    assert (owner.world.supervisor.link, owner.socket.poll(100)) == (owner.world.links[1], 0)
    assert owner.control.next_deadline() is None


def test_drain_and_undrain(owner: Owner) -> None:
    owner.say("drain")
    owner.reply()
    owner.say("undrain")
    owner.reply()
    assert owner.drained == [True, False]


@pytest.mark.parametrize("folder", ["~nobody-of-this-name/model", "x" * 300 + "/model", "/proc/1/root/model"])
def test_a_folder_that_cannot_be_looked_at_is_refused(owner: Owner, folder: str) -> None:
    owner.say("load", model="n", params={"source": folder})
    code, message = owner.refusal()
    assert code == "load_failed"
    assert "\n" not in message
    assert owner.world.supervisor.models == specs("m")


def test_a_signal_reloads_once_and_has_nobody_to_answer(
    owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    owner.control.reload()
    owner.control.reload()
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == ["no reload"]
    owner.finish()
    assert (owner.world.supervisor.models, owner.socket.poll(100)) == (specs("m"), 0)


def test_a_stopping_server_gives_a_change_up_and_begins_no_other(owner: Owner) -> None:
    owner.say("reload", b"1")
    owner.control.stop()
    assert owner.refusal()[0] == "shutting_down"
    owner.say("undrain", b"2")
    assert (owner.refusal()[0], owner.drained) == ("shutting_down", [])


def test_who_still_waits_at_the_end_is_answered(socket_folder: Path) -> None:
    made = Owner(socket_folder)
    made.say("reload")
    made.control.close(linger_ms=1000)
    assert made.refusal()[0] == "shutting_down"
    made.close()


def test_garbage_is_refused_or_dropped(owner: Owner) -> None:
    owner.send([b"", b"\xc1"])
    assert owner.refusal()[0] == "invalid_request"
    owner.send([b"x"])
    owner.say("drain")
    assert owner.reply().id == b"1"
