"""as_tensor: what callers hand in, and what it becomes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_server.wire import Tensor
from gpu_server.wire.convert import as_tensor

ARRAY = np.array([[1, 2], [3, 4]], "<u2")


@pytest.mark.parametrize(
    ("values", "options", "dtype", "shape"),
    [
        (ARRAY, {}, "u16", (2, 2)),
        (ARRAY, {"dtype": "f16"}, "f16", (2, 2)),
        (ARRAY.astype("f8"), {}, "f64", (2, 2)),
        ([[1.0, 2.0]], {}, "f32", (1, 2)),
        ([1, 2], {}, "i64", (2,)),
        ([True, False], {}, "bool", (2,)),
        ([1, 2], {"dtype": "u8"}, "u8", (2,)),
        ([1, 2], {"dtype": "f64"}, "f64", (2,)),
        ([np.zeros(2, "f2"), np.zeros(2, "f2")], {}, "f16", (2, 2)),
        ([[1], [2, 3]], {}, "i64", (2, -1)),
        ([[1], [2.5, 3]], {}, "f32", (2, -1)),
        ([[True], [], [False, True]], {}, "bool", (3, -1)),
        ([[], [1]], {"dtype": "i32"}, "i32", (2, -1)),
        ([[1, 2], [3, 4]], {"ragged": True}, "i64", (2, -1)),
        ([[[1, 2]], [[3, 4], [5, 6]]], {}, "i64", (2, -1, 2)),
        ((np.zeros((1, 3)), np.zeros((2, 3))), {"dtype": "f32"}, "f32", (2, -1, 3)),
        (["a", "é"], {}, "utf8", (2,)),
        ([b"a", b""], {}, "bytes", (2,)),
        (["a"], {"dtype": "bytes"}, "bytes", (1,)),
        (np.array(["a", "b"]), {}, "utf8", (2,)),
    ],
)
def test_form(values: Any, options: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> None:
    tensor = as_tensor(values, **options)
    assert (tensor.dtype, tensor.shape) == (dtype, shape)


def test_a_tensor_is_passed_through() -> None:
    tensor = Tensor.from_strings(["a"])
    assert as_tensor(tensor, "f32") is tensor


@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), min_size=1, max_size=5))
def test_id_lists_keep_their_values(rows: list[list[int]]) -> None:
    assert [row.tolist() for row in as_tensor(rows, "i32", ragged=True).rows()] == rows


@given(st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_floats_keep_their_values(values: list[float]) -> None:
    np.testing.assert_array_equal(as_tensor(values).to_numpy(), np.array(values, "f4"))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.5], "i32"),
        ([[1.5], []], "i32"),
        ([256], "u8"),
        ([-1], "u8"),
        ([[2**31], []], "i32"),
        ([[2**63], [1, 2]], None),
        ([1e300], None),
        ([[1e300], []], None),
        ([70000.0], "f16"),
        ([70000], "f16"),
        ([1, [2]], None),
    ],
)
def test_values_that_do_not_fit(values: Any, dtype: str | None) -> None:
    with pytest.raises((ValueError, OverflowError)):
        as_tensor(values, dtype)


@pytest.mark.parametrize(("values", "ragged"), [([[1, 2], [3]], False), ([1, [2]], None), ([[[1], 2]], True)])
def test_lists_of_unequal_length_are_told_in_our_words(values: Any, ragged: bool | None) -> None:
    with pytest.raises(ValueError, match=r"^lists of unequal length where one shape is expected$"):
        as_tensor(values, "i32", ragged)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ("text", None),
        (b"bytes", None),
        (7, None),
        (iter([1]), None),
        ({"a": 1}, None),
        ({1, 2}, None),
        (np.array(1), None),
        ([None], None),
        ([1, "a"], None),
        ([[1, "a"], [2]], None),
        (["a", b"b"], None),
        (["a"], "f32"),
        ([1], "utf8"),
        ([1], "bf16"),
        ([1], "float32"),
        ([1, 2], "object"),
        ([1j], None),
        ([2**64], None),
        (np.zeros((1,) * 9), None),
    ],
)
def test_values_without_wire_form(values: Any, dtype: str | None) -> None:
    with pytest.raises(TypeError):
        as_tensor(values, dtype)


def test_infinity_is_no_overflow() -> None:
    assert as_tensor([float("inf"), float("-inf")], "f16").to_numpy().tolist() == [np.inf, -np.inf]
