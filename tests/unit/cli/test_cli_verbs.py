"""The verbs against a fake daemon: what they print and what they exit with."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from running_daemon import clean_environment, until

from gpu_server import config
from gpu_server._version import __version__
from gpu_server.cli import VERBS, main
from gpu_server.cli.start import Progress
from gpu_server.daemon.instance import holder_pid
from gpu_server.errors import ModelLoading
from gpu_server.testing import FakeModel, FakeServer, echo_model, embedding_model
from gpu_server.wire.documents import EngineStatus, ModelInfo, QueueStatus, Status


@pytest.fixture
def server(own_endpoint: str) -> Iterator[FakeServer]:
    with FakeServer(endpoint=own_endpoint) as running:
        yield running


class Ran:
    """Exit code and output of one command line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["gpu-server", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *self._capsys.readouterr()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ran:
    return Ran(monkeypatch, capsys)


def test_every_verb_has_help_and_is_listed(run: Ran) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for verb in VERBS:
        assert f"  {verb} " in out
        assert run(verb, "--help")[0] == 0
    assert run("--version")[1] == f"gpu-server, version {__version__}\n"


def test_start_has_a_flag_for_every_setting(run: Ran) -> None:
    _, out, _ = run("start", "--help")
    for kind in config.SECTIONS.values():
        for about in fields(kind):
            assert f"  --{about.name.replace('_', '-')} " in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "No such command 'nope'."),
        (["relaod"], "No such command 'relaod'. Did you mean 'reload' or 'load'?"),
        (["start", "--max-itmes"], "--max-items"),
        (["status", "--nope"], "--nope"),
        (["embed"], "Missing argument"),
        (["start", ""], "'' names no model."),
        (["start", "x="], "'x=' names no model."),
        (["load", "x="], "'x=' names no model."),
        (["bench", "forward", "x="], "'x=' names no model."),
        (["bench", "forward", ""], "'' names no model."),
        (["check", "good:Class", ""], "'' names no model."),
        (["bench", "forward", "good:Class", "--shape", "minilm"], "leave out MODEL"),
        (["bench", "forward", "--shape", "minilm", "--revision", "v1"], "leave out MODEL and --revision"),
        (["unload", ""], "'' names no model."),
        (["embed", "--model", "", "text"], "'' names no model."),
        (["bench", "http", "http://127.0.0.1:99999/embed"], "is not a URL"),
        (["bench", "http", "http://127.0.0.1:0/embed"], "is not a URL"),
        (["bench", "http", "http://[::1/embed"], "is not a URL"),
        *[
            (["bench", "http", "http://127.0.0.1:1/embed", f"--{option}", "nan"], "nan is not a number")
            for option in ("rate", "words", "spread", "duration", "warm-up", "timeout")
        ],
        (["bench", "http", "http://127.0.0.1:1/embed", "--rate", "1e9"], "not in the range"),
        (["bench", "http", "http://127.0.0.1:1/embed", "--words", "inf"], "not in the range"),
        (["bench", "http", "http://127.0.0.1:1/embed", "--duration", "inf"], "not in the range"),
        (["top", "--every", "nan"], "nan is not a number"),
        (["autoscale", "--pid", "1", "--remove-after-s", "nan"], "nan is not a number"),
        (["drain", "--timeout-s", "nan"], "nan is not a number"),
        (["reload", "--timeout-s", "nan"], "nan is not a number"),
        (["stop", "--timeout-s", "nan"], "nan is not a number"),
    ],
)
def test_a_wrong_command_line_is_2(run: Ran, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_embed_prints_a_row_of_json_a_text(run: Ran, server: FakeServer) -> None:
    code, out, err = run("embed", "a", "b")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [len(row) for row in rows] == [8, 8]


def test_embed_of_a_model_that_is_not_there(run: Ran, server: FakeServer) -> None:
    code, out, err = run("embed", "a", "--model", "nope")
    assert (code, out) == (68, "")
    assert err == "gpu-server: model 'nope' is not served; served: fake/embedding, echo\n"


def test_embed_of_a_model_that_embeds_nothing(run: Ran, server: FakeServer) -> None:
    code, out, err = run("embed", "a", "--model", "echo")
    assert (code, out, err) == (67, "", "gpu-server: model 'echo' takes no text\n")


def test_embed_takes_the_first_model_that_embeds(run: Ran, own_endpoint: str) -> None:
    with FakeServer(echo_model(), embedding_model(), endpoint=own_endpoint):
        code, out, err = run("embed", "a")
    assert (code, err, len(json.loads(out))) == (0, "", 8)


def test_embed_while_the_models_load(run: Ran, own_endpoint: str) -> None:
    def refuse(inputs: object, params: object) -> dict[str, Any]:
        raise ModelLoading("the models are still loading")

    with FakeServer(FakeModel(embedding_model().info, refuse), endpoint=own_endpoint) as server:
        server.state = "loading"
        code, out, err = run("embed", "a")
    assert (code, out) == (3, "")
    assert err.startswith("gpu-server: the models are still loading (loading")
    assert err.endswith("); watch it with: gpu-server status\n")


def test_models(run: Ran, server: FakeServer) -> None:
    assert run("models")[1].splitlines() == [
        "fake/embedding  embedding  text or input_ids: i32[any]",
        "echo  custom  any inputs",
    ]
    assert [m["name"] for m in json.loads(run("models", "--json")[1])] == ["fake/embedding", "echo"]
    assert run("models", "--endpoint", "ipc:///nonexistent/s")[0] == 69


def test_status_exits_by_readiness(run: Ran, server: FakeServer) -> None:
    code, out, _ = run("status")
    assert code == 0
    assert out.startswith("ready\n")
    assert "fake/embedding" in out
    assert json.loads(run("status", "--json")[1])["state"] == "ready"
    server.state = "loading"
    assert run("status")[0] == 3


def test_config_prints_what_it_would_use_and_reads_it_back(
    run: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[server]\nlog_level = "debug"\n[[models]]\nsource = "a:B"\nname = "quo\\"te\\\\"\n')
    monkeypatch.setenv("GPU_SERVER_MAX_ITEMS", "77")
    code, out, _ = run("config", "--config", str(file))
    assert code == 0
    table = tomllib.loads(out)
    assert (table["server"]["log_level"], table["limits"]["max_items"]) == ("debug", 77)
    file.write_text(out)
    assert run("config", "--config", str(file))[1] == out


def test_config_reference(run: Ran) -> None:
    assert run("config", "--reference")[1] == config.reference()


def test_misspelt_variables_are_a_line_each_on_stderr(
    run: Ran, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_SERVER_MAX_ITMES", "5")
    monkeypatch.setenv("GPU_SERVER_WEB_WORKERS", "5")
    said = "gpu-server: warning: GPU_SERVER_MAX_ITMES is unknown and sets nothing; did you mean GPU_SERVER_MAX_ITEMS?"
    code, out, err = run("config")
    assert (code, err) == (0, f"{said}\n")
    assert tomllib.loads(out)["limits"]["max_items"] == config.LimitsConfig().max_items
    code, _, err = run("start", "--log-level", "loud")
    assert code == 78
    assert err.splitlines()[0] == said
    assert len(err.splitlines()) == 2
    assert run("config", "--reference")[2] == ""


def test_stop_without_a_daemon(run: Ran) -> None:
    code, _, err = run("stop")
    assert code == 69
    assert err.startswith("gpu-server: no gpu-server daemon at ipc:///")


def test_stop_waits_for_the_end_or_gives_up(run: Ran, own_endpoint: str) -> None:
    code = f"""
import signal
from gpu_server.daemon.instance import Instance
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
held = Instance({own_endpoint!r})
signal.sigwait({{signal.SIGTERM}})
print("heard", flush=True)
signal.sigwait({{signal.SIGTERM}})
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, text=True) as holder:
        until(lambda: holder_pid(own_endpoint) == holder.pid, "the lock is held", 30)
        status, _, err = run("stop", "--timeout-s", "0.1")
        assert (status, err) == (69, f"gpu-server: the daemon (pid {holder.pid}) has not ended after 0 s\n")
        # Two of the same signal that wait to be heard are one.
        assert holder.stdout is not None
        assert holder.stdout.readline() == "heard\n"
        assert run("stop", "--timeout-s", "30") == (0, "", "")
        assert holder.wait(10) == 0


def status_at(state: str, phase: str = "", progress: float = 0.0) -> Status:
    engine = EngineStatus(pid=1, device="cpu", state="loading")
    return Status(
        version="1", pid=1, endpoint="ipc:///s", state=state, phase=phase, progress=progress, engines=(engine,),
        models=(ModelInfo(name="m"),), queue=QueueStatus(),
    )  # type: ignore[arg-type]  # fmt: skip


def test_progress_is_a_line_a_phase_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show = Progress()
    for phase, done in (("loading m", 0.1), ("loading m", 0.2), ("warming up m", 0.66)):
        show(status_at("loading", phase, done))
    show(status_at("ready"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [" 10% loading m", " 66% warming up m"]
    assert lines[2].startswith("ready in ")
    assert lines[2].endswith(" s: m on cpu at ipc:///s")
    show(status_at("ready"))
    assert capsys.readouterr().err == "ready again: m on cpu at ipc:///s\n"
