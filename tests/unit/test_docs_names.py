"""What the documentation names exists, and what exists is named: commands, routes, variables, modules, pages, figures."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from doc_pages import CHINESE, LINK, OPERATIONS, PAGES, README, ROOT, anchors, blocks, code, page_id, prose

from gpu_server import AsyncClient, Client, config
from gpu_server.cli import VERBS, cli
from web.routes import TABLE
from web.settings import Settings, variable_of


def all_code() -> str:
    return "\n".join(map(code, PAGES))


def typed_commands(page: Path) -> Iterator[list[str]]:
    """The words of every `gpu-server …` line in a console block, up to a pipe or a comment."""
    for block in blocks(page, "console"):
        for line in re.findall(r"^\$ (?:.*/)?(gpu-server .*)", block, re.MULTILINE):
            words = shlex.split(line, comments=True)
            yield words[1 : next((i for i, word in enumerate(words) if word in ("|", "&")), None)]


def command_of(words: list[str]) -> click.Command:
    """The command that a line calls, of a verb or below one."""
    command: click.Command = cli
    for word in words:
        if not isinstance(command, click.Group):
            break
        found = command.get_command(click.Context(command), word)
        assert found, " ".join(words)
        command = found
    return command


def leaves(command: click.Command, *path: str) -> Iterator[str]:
    """The names of all commands below one, such as `bench http`."""
    if not isinstance(command, click.Group):
        yield " ".join(path)
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found
        yield from leaves(found, *path, name)


def figures(page: Path) -> list[str]:
    """The numbers with a decimal point or a thousands separator in a page's tables, in order."""
    rows = [line for line in prose(page).splitlines() if line.startswith("|")]
    return re.findall(r"\d+[.,]\d+", "\n".join(rows))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_and_files_exist(page: Path) -> None:
    text = code(page)
    for verb in re.findall(r"gpu-server (?!-|MODEL)([\w-]+)", text):
        assert verb in VERBS, f"gpu-server {verb}"
    for path in re.findall(r"(?<![\w/])((?:scripts|examples|tests|proto|docs)/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_typed_flags_exist(page: Path) -> None:
    for words in typed_commands(page):
        known = {"--help"}
        for parameter in command_of(words).params:
            known.update(parameter.opts, parameter.secondary_opts)
        for word in words:
            assert not word.startswith("--") or word.partition("=")[0] in known, " ".join(words)


def test_every_command_is_named() -> None:
    text = all_code()
    assert [name for name in leaves(cli) if not re.search(rf"gpu-server {name}\b", text)] == []


def test_every_page_is_linked_from_both_readmes() -> None:
    pages = {*(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")}
    pages |= {ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"}
    for readme in (README, CHINESE):
        linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(prose(readme))}
        assert pages - linked == set(), readme.name


def test_every_decision_is_linked_from_the_design() -> None:
    linked = set(LINK.findall(prose(ROOT / "docs" / "design.md")))
    assert {f"decisions/{page.name}" for page in (ROOT / "docs" / "decisions").glob("*.md")} <= linked


def test_every_module_has_its_place_in_the_design() -> None:
    text = code(ROOT / "docs" / "design.md")
    for entry in (ROOT / "gpu_server").iterdir():
        if entry.suffix == ".py" and not entry.name.startswith("_"):
            assert re.search(rf"(^|/){re.escape(entry.name)}$", text, re.MULTILINE), entry.name
        elif (entry / "__init__.py").exists():
            assert f"gpu_server/{entry.name}" in text, entry.name


def test_every_route_is_named() -> None:
    """But those with a model in the path, which the page describes in words."""
    text = code(ROOT / "docs" / "compat.md") + code(OPERATIONS) + code(ROOT / "docs" / "quickstart.md")
    for route in TABLE:
        if "<" not in route.path:
            assert re.search(rf"(^|\s){re.escape(route.path)}($|\s)", text, re.MULTILINE), route.path


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_variables_exist(page: Path) -> None:
    known = {variable_of(f.name) for f in fields(Settings)}
    known.update(re.findall(r"GPU_SERVER_\w+", config.reference()))
    source = "".join(path.read_text("utf-8") for path in (ROOT / "gpu_server").rglob("*.py"))
    for name in re.findall(r"\bGPU_SERVER_\w*[A-Z](?!\w)", code(page)):
        assert name in known or f'"{name}"' in source, name


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_extras_exist(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for names in re.findall(r"'\.\[([\w,]+)\]'", code(page)):
        assert set(names.split(",")) <= set(extras), names


def test_named_calls_exist_and_the_main_ones_are_named() -> None:
    named = set(re.findall(r"\b[Cc]lient\.(\w+)\(", all_code())) - {"create"}
    for kind in (Client, AsyncClient):
        assert {name for name in named if not hasattr(kind, name)} == set(), kind.__name__
    assert {name for name in dir(Client) if re.match("embed|rerank|classify|infer$", name)} <= named


def test_readmes_have_the_same_figures() -> None:
    assert figures(CHINESE) == figures(README)


def test_readme_has_the_figures_of_the_performance_page() -> None:
    page = prose(ROOT / "docs" / "performance.md")
    names, _, speeds = (
        line.strip("|").split("|")[1:] for line in prose(README).split("random ones:\n\n")[1].splitlines()[:3]
    )
    for name, speed in zip(names, speeds, strict=True):
        measured = re.findall(
            rf"^\| {name.strip()}, \w+(?:, real weights)? \|(?:[^|]*\|){{5}} \**([\d.]+)\** \|",
            page,
            re.MULTILINE,
        )
        assert measured == [speed.strip()], name
    for figure in ("13,551", "63,019"):
        assert figure in page and figure in figures(README)
