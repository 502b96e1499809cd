"""The documentation is true: what it shows runs, and its tables are those of the code."""

from __future__ import annotations

import difflib
import json
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from doc_pages import CHINESE, OPERATIONS, PAGES, README, ROOT, blocks, page_id, prose, table
from running_daemon import RunningDaemon, clean_environment

from gpu_server import config, errors
from gpu_server.daemon.metrics import families
from gpu_server.testing import FakeModel, FakeServer, embedding_model
from gpu_server.wire.documents import ModelInfo
from web.settings import Settings, variable_of

CUSTOM_MODEL = ROOT / "examples" / "custom_model"


def exit_codes(kind: type[errors.GPUServerError]) -> set[int]:
    return {kind.exit_code}.union(*(exit_codes(child) for child in kind.__subclasses__()))


def test_configuration_page_is_the_generated_reference() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text("utf-8") == config.reference()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_and_toml_blocks_parse(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page_id(page), "exec")
    for block in blocks(page, "toml"):
        assert set(tomllib.loads(block)) <= {"server", "limits", "engine", "models"}


def test_chinese_readme_has_the_same_blocks() -> None:
    assert blocks(CHINESE) == blocks(README)


def test_shown_code_is_the_examples_code() -> None:
    shown = [(CUSTOM_MODEL / name).read_text("utf-8") for name in ("classifier.py", "app.py")]
    assert blocks(README, "python") == shown
    client = (ROOT / "examples" / "direct_client" / "client.py").read_text("utf-8")
    assert blocks(ROOT / "docs" / "protocol.md", "python") == [client]


def test_models_page_settings_are_accepted(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "models.md", "toml")
    path = tmp_path / "models.toml"
    path.write_text(block)
    assert [model.name for model in config.load(path, env={}).models] == ["embedder", ""]


def test_error_table_is_errors_json() -> None:
    listed = json.loads((ROOT / "proto" / "errors.json").read_text("utf-8"))
    expected = [
        [e["code"], e["class"], str(e["http"]), "yes" if e["retryable"] else "no", e["description"]]
        for e in listed
    ]
    assert table(OPERATIONS, "Errors") == expected


def test_metrics_table_is_the_declarations() -> None:
    assert families.reference() in OPERATIONS.read_text("utf-8")


def test_exit_code_table_has_every_code_of_a_class() -> None:
    rows = table(OPERATIONS, "Exit codes")
    for number, _, name in rows:
        assert not name or getattr(errors, name).exit_code == int(number), name
    inside_only = {errors.DeviceLost.exit_code}
    assert exit_codes(errors.GPUServerError) - inside_only <= {int(number) for number, _, _ in rows}


def test_every_web_variable_is_listed_with_its_default() -> None:
    rows = [[row[0], row[1]] for row in table(ROOT / "docs" / "deploy.md", "Gunicorn")]
    assert sorted(rows) == sorted([variable_of(f.name), str(f.default)] for f in fields(Settings))


def test_fixed_app_differs_from_the_naive_one_in_at_most_ten_lines() -> None:
    folder = ROOT / "examples" / "fork_error"
    naive, fixed = ((folder / name).read_text("utf-8").splitlines() for name in ("naive.py", "fixed.py"))
    changed = [line for line in difflib.ndiff(naive, fixed) if line[0] in "-+"]
    assert 0 < len(changed) <= 10


def test_help_of_the_fork_error_example_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for heavy in ("minilm", "torch"):
        monkeypatch.setitem(sys.modules, heavy, ModuleType(heavy))
    monkeypatch.setattr(sys, "argv", ["run.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples" / "fork_error" / "run.py"), run_name="__main__")
    assert ended.value.code == 0
    assert "naive.py and fixed.py" in capsys.readouterr().out


def test_quick_start_client_block_prints_what_the_page_says(
    own_endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "quickstart.md"
    block, _ = blocks(page, "python")
    script = tmp_path / "script.py"
    script.write_text(block)
    with FakeServer(embedding_model(dimensions=384), endpoint=own_endpoint):
        runpy.run_path(str(script))["client"].close()
    assert f"`{capsys.readouterr().out.strip()}`" in prose(page)


def test_quick_start_test_passes(tmp_path: Path) -> None:
    _, block = blocks(ROOT / "docs" / "quickstart.md", "python")
    (tmp_path / "test_mine.py").write_text(block)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_direct_client_embeds(own_endpoint: str) -> None:
    model = FakeModel(
        ModelInfo(name="lengths"),
        lambda inputs, params: {
            "embedding": np.array([[len(t), 0.5] for t in inputs["text"].strings()], "<f4")
        },
    )
    client = runpy.run_path(str(ROOT / "examples" / "direct_client" / "client.py"))
    with FakeServer(model, endpoint=own_endpoint):
        assert client["embed"](own_endpoint, ["Hello", "é"]) == [(5.0, 0.5), (1.0, 0.5)]


def test_direct_client_says_that_nobody_answers(socket_folder: Path) -> None:
    client = runpy.run_path(str(ROOT / "examples" / "direct_client" / "client.py"))
    for wrong in ("nonsense", f"ipc://{'x' * 200}"):
        with pytest.raises(SystemExit, match=f"no answer from {wrong} "):
            client["embed"](wrong, ["Hello"])


def test_custom_routes_beside_the_stock_ones(own_endpoint: str) -> None:
    script = (
        "import json, app\n"
        "client = app.app.test_client()\n"
        "good = client.post('/compare', json={'texts': ['a', 'a', 'b']})\n"
        "bad = [client.post('/compare', json=body) for body in ({'texts': ['a']}, {}, [1], 'x')]\n"
        "print(json.dumps([good.status_code, good.json, [[b.status_code, b.json] for b in bad]]))\n"
    )
    with FakeServer(embedding_model(), endpoint=own_endpoint):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT / "examples" / "flask_app",
            capture_output=True,
            timeout=30,
        )
    assert done.returncode == 0, done.stderr.decode()
    status, good, bad = json.loads(done.stdout)
    assert status == 200
    assert good["similarity"][0] == pytest.approx(1.0) and good["similarity"][1] < 0.99
    assert [(code, body["error_type"]) for code, body in bad] == [(422, "Validation")] * 4


@pytest.mark.slow
def test_readme_model_runs_behind_the_readme_app(
    daemon: Callable[..., RunningDaemon], tmp_path: Path
) -> None:
    for name, block in zip(("classifier.py", "app.py"), blocks(README, "python"), strict=True):
        (tmp_path / name).write_text(block)
    daemon("classifier:Classifier", folder=tmp_path).wait_ready()
    loaded = runpy.run_path(str(tmp_path / "app.py"))
    http = loaded["app"].test_client()
    answer = http.post("/classify", json=[[[[0.5] * 32] * 32] * 3, [[[0.1] * 32] * 32] * 3]).json
    refused = [http.post("/classify", json=wrong) for wrong in ([[1, 2]], [["a"]], [[1], 2], {}, "x", [])]
    loaded["client"].close()
    assert len(answer["label"]) == len(answer["score"]) == 2
    assert all(0.1 <= score <= 1.0 for score in answer["score"])
    assert [one.status_code for one in refused] == [400] * len(refused)
    assert all("input 'pixels'" in one.json["error"] for one in refused)
    assert json.dumps(refused[0].json["error"]) in README.read_text("utf-8")
