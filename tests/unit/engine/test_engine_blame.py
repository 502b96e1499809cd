"""Where an error arose, in the user's own words: never in ours, and not in a package that they only use."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from gpu_server.engine import blame
from gpu_server.wire import Tensor

HERE = "test_engine_blame.py"


def caught(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as error:
        function()
    return error.value


def test_it_is_one_line() -> None:
    def fails() -> None:
        raise ValueError("first\nsecond")

    assert blame.describe(caught(fails)) == f"ValueError: first ({HERE}:{fails.__code__.co_firstlineno + 1})"


def test_its_words_may_be_left_out() -> None:
    assert blame.of(ValueError("first\nsecond")) == ("ValueError", "first", "")


@pytest.mark.parametrize(
    "use",
    [
        lambda: json.loads("{"),
        lambda: np.linalg.inv(np.zeros((2, 3))),
        lambda: Tensor.from_strings([3]),  # type: ignore[list-item]
    ],
)
def test_the_place_is_where_a_library_was_used(use: Callable[[], object]) -> None:
    assert blame.place(caught(use)) == f" ({HERE}:{use.__code__.co_firstlineno})"


def test_where_none_of_their_lines_ran_it_is_their_class() -> None:
    error = ValueError("x")
    assert blame.place(error) == ""
    assert blame.place(error, Tensor).startswith(" (tensor.py:")
    assert blame.place(error, int) == ""
