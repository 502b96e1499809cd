"""The tables of docs/models.md: the families are those that the tests cover, the calls and routes are there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import test_text_encoder
import test_text_multi_vector
import test_text_sequence
import test_text_sparse
import test_text_t5
import test_text_token_classifier

from gpu_server.client import Client
from gpu_server.wire.documents import Kind
from web.routes import TABLE

PAGE = Path(__file__).parents[4] / "docs" / "models.md"


def rows(header: str) -> list[list[str]]:
    """The cells of the table with that first line."""
    lines = PAGE.read_text("utf-8").partition(f"{header}\n")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def families_of(test: Callable[..., Any]) -> set[str]:
    """The values of `family` that a test is run for."""
    (mark,) = [mark for mark in test.pytestmark if "family" in str(mark.args[0])]  # type: ignore[attr-defined]
    given = [value.values if hasattr(value, "values") else value for value in mark.args[1]]
    return {value if isinstance(value, str) else value[0] for value in given}


TESTED = {
    "`embedding`": families_of(test_text_encoder.test_a_mixed_batch_equals_transformers_one_by_one)
    | families_of(test_text_t5.test_a_sentence_t5_equals_sentence_transformers),
    "`embedding` (BGE-M3)": {test_text_multi_vector.FAMILY},
    "`sparse`": families_of(test_text_sparse.test_equals_sentence_transformers),
    "`reranker`, `classifier`": families_of(test_text_sequence.test_every_family_equals_transformers),
    "`token_classifier`": families_of(test_text_token_classifier.test_equals_transformers),
}


def test_the_families_are_those_that_tests_cover() -> None:
    listed = {kind: families.split(", ") for kind, families in rows("| kind | families |")}
    assert {kind: set(families) for kind, families in listed.items()} == TESTED
    for families in listed.values():
        assert families == sorted(families)


def test_every_kind_of_text_model_is_listed() -> None:
    kinds = {re.findall("`(.+?)`", kind)[0] for kind, *_ in rows("| kind | known by | client | HTTP |")}
    assert kinds == {*get_args(Kind)} - {"custom"}


@pytest.mark.parametrize("row", rows("| kind | known by | client | HTTP |"), ids=lambda row: row[0])
def test_calls_and_routes_exist(row: list[str]) -> None:
    calls = {name for name in re.findall("`(.+?)`", row[2]) if name != "output"}
    assert calls
    assert all(callable(getattr(Client, name)) for name in calls)
    paths = {route.path for route in TABLE}
    assert {*re.findall("`(.+?)`", row[3])} <= paths
