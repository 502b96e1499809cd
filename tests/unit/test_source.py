"""Model arguments are checked before any process starts, and never by importing what they name."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from gpu_server import source
from gpu_server.errors import ConfigError, MissingDependency, ModelClassError, ModelFolderMissing

METHODS = "def load(self, device): ...\n    def forward(self, batch): ...\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, searched for modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("", "default", "sentence-transformers/all-MiniLM-L6-v2"),
        ("pkg.mod:Class", "class", "Class"),
        ("mod:Class", "class", "Class"),
        ("/models/bge", "folder", "bge"),
        ("./bge/", "folder", "bge"),
        ("~/bge", "folder", "bge"),
        ("BAAI/bge-small-en-v1.5", "hub", "BAAI/bge-small-en-v1.5"),
        ("gpt2", "hub", "gpt2"),
        ("all-MiniLM-L6-v2", "hub", "sentence-transformers/all-MiniLM-L6-v2"),
    ],
)
def test_what_a_source_names(folder: Path, text: str, kind: str, name: str) -> None:
    assert (source.kind_of(text), source.name_of(text)) == (kind, name)


def test_a_folder_here_is_no_hub_id(folder: Path) -> None:
    (folder / "gpt2").mkdir()
    assert source.kind_of("gpt2") == "folder"
    (folder / "all-MiniLM-L6-v2").mkdir()
    assert source.name_of("all-MiniLM-L6-v2") == "all-MiniLM-L6-v2"


@pytest.mark.parametrize("text", ["", "all-MiniLM-L6-v2"])
def test_a_folder_of_the_default_model_s_whole_name_is_not_that_model(folder: Path, text: str) -> None:
    (folder / source.DEFAULT_NAME).mkdir(parents=True)
    assert source.name_of(text) == source.DEFAULT_NAME
    assert source.kind_of(source.DEFAULT_NAME) == "folder"


@pytest.mark.parametrize("text", ["a:b:c", "mod:", ":Class", "mod:1x", "path/mod.py:Class", "https://x/y"])
def test_what_has_a_colon_must_be_a_class(folder: Path, text: str) -> None:
    with pytest.raises(ModelClassError, match="is not module:Class"):
        source.kind_of(text)


@pytest.mark.parametrize("text", ["a/b/c", "a b", "-x", "a/"])
def test_what_is_nothing(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="neither module:Class, a folder, nor a hub id"):
        source.kind_of(text)


def test_a_module_that_is_not_found_names_the_folder_that_was_searched(folder: Path) -> None:
    with pytest.raises(ModelClassError) as error:
        source.check("nowhere:Class")
    assert f" in {folder}, " in str(error.value)


def test_a_module_is_never_imported(folder: Path) -> None:
    for place in (folder, folder / "witness_package"):
        place.mkdir(exist_ok=True)
        (place / "witness.py").write_text("open('imported', 'w')\nclass Good:\n    " + METHODS)
    (folder / "witness_package" / "__init__.py").write_text("open('imported', 'w')\n")
    source.check("witness:Good")
    source.check("witness_package.witness:Good")
    with pytest.raises(ModelClassError, match=r"has no class 'Bad'; it defines: Good"):
        source.check("witness:Bad")
    assert not (folder / "imported").exists()
    assert not [name for name in sys.modules if name.startswith("witness")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nowhere:Class", r"module 'nowhere' was not found in /.+, where gpu-server was started, or among"),
        ("shallow.deep:Class", "module 'shallow' is not a package"),
        ("package.nowhere:Class", r"module 'package.nowhere' was not found: package 'package' has none"),
        ("broken:Class", r"broken\.py:2: "),
        ("shallow.py:Class", r"'shallow\.py:Class' names a file, not a module; did you mean shallow:Class\?"),
        ("package.deep.py:Class", r"did you mean package\.deep:Class\?"),
        ("shallow:Class", "has no class 'Class'; it defines no class"),
        ("shallow:used", "has no class 'used'"),
    ],
)
def test_wrong_turns(folder: Path, text: str, reason: str) -> None:
    (folder / "shallow.py").write_text("def f():\n    print(used)\n")
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "broken.py").write_text("x = 1\nclass Class(:\n")
    with pytest.raises(ModelClassError, match=reason) as error:
        source.check(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        f"class Model:\n    {METHODS}",
        "from elsewhere import Model",
        "import elsewhere as Model",
        "from elsewhere import *",
        "Model = make()",
        "if True:\n    class Model: ...",
        "def __getattr__(name): ...",
    ],
)
def test_any_way_to_bind_a_name_is_trusted(folder: Path, text: str) -> None:
    (folder / "binds.py").write_text(text)
    source.check("binds:Model")


def test_compiled_modules_cannot_be_read_and_pass(folder: Path) -> None:
    (folder / f"compiled{EXTENSION_SUFFIXES[0]}").touch()
    source.check("compiled:Anything")


def test_folders(folder: Path) -> None:
    with pytest.raises(ModelFolderMissing, match=r"model folder .*nope does not exist"):
        source.check(str(folder / "nope"))
    (folder / "empty").mkdir()
    with pytest.raises(ModelFolderMissing, match=r"empty has no config\.json"):
        source.check("./empty")


@pytest.mark.parametrize("text", ["echo.py", "./echo.py", "models/echo.py", "/nowhere/echo.py"])
def test_a_python_file_is_no_model(folder: Path, text: str) -> None:
    with pytest.raises(ModelClassError, match=r"did you mean echo:Class\?"):
        source.kind_of(text)


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("class Own:\n    def forward(self, batch): ...", "load"),
        ("from gpu_server import Model\nclass Own(Model):\n    def load(self, device): ...", "forward"),
        ("from gpu_server import Model as M\nclass Own(M): ...", "load"),
    ],
)
def test_a_class_without_its_methods(folder: Path, text: str, method: str) -> None:
    (folder / "own.py").write_text(text)
    with pytest.raises(ModelClassError, match=rf"own:Own: class 'Own' .* has no method {method}\(\)"):
        source.check("own:Own")


@pytest.mark.parametrize(
    "text",
    [
        "from elsewhere import Base\nclass Own(Base): ...",
        "from elsewhere import Model\nclass Own(Model): ...",
        "from gpu_server import Model\nModel = wrap(Model)\nclass Own(Model): ...",
        "class Own(metaclass=Meta): ...",
        "@complete\nclass Own: ...",
        "class Own: ...\nOwn.load = Own.forward = f",
        "class Own:\n    load = forward = f",
        "class Own:\n    from elsewhere import load, forward",
        "class Own: ...\nfor name in names:\n    setattr(Own, name, f)",
        "class Own: ...\nOwn = complete(Own)",
        "from elsewhere import *\nclass Own: ...",
    ],
)
def test_a_class_that_may_get_its_methods_elsewhere_is_trusted(folder: Path, text: str) -> None:
    (folder / "own.py").write_text(text)
    source.check("own:Own")


@pytest.mark.parametrize(
    ("package", "text"),
    [("torch", "mod:Class"), ("torch", ""), ("transformers", ""), ("tokenizers", "mod:Class")],
)
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, package: str, text: str) -> None:
    find = source.importlib.util.find_spec
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda n: None if n == package else find(n))
    with pytest.raises(
        MissingDependency, match=rf"{package} is not installed; .*: pip install '\.\[server\]'"
    ):
        source.check(text)


def test_the_current_folder_is_searched_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    source.search_current_folder()
    source.search_current_folder()
    assert sys.path == [str(folder), "/elsewhere"]
