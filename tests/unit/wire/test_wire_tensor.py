"""Tensor: round trips, slices, concatenation."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpu_server.wire import (
    Limits,
    RequestHeader,
    Tensor,
    decode_request,
    encode_request,
)
from gpu_server.wire.tensor import NUMPY_DTYPE

DTYPES = sorted(NUMPY_DTYPE)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    return draw(hnp.arrays(NUMPY_DTYPE[draw(st.sampled_from(DTYPES))], SHAPES))


@st.composite
def ragged_rows(draw: st.DrawFn) -> tuple[str, list[np.ndarray[Any, Any]]]:
    dtype = draw(st.sampled_from(DTYPES))
    dims = draw(st.lists(st.integers(1, 3), max_size=2))
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
    return dtype, [draw(hnp.arrays(NUMPY_DTYPE[dtype], (n, *dims))) for n in lengths]


texts = st.lists(st.text(max_size=8), min_size=1, max_size=80)
blobs = st.lists(st.binary(max_size=8), min_size=1, max_size=8)
tensors = st.one_of(
    arrays().map(Tensor.from_numpy),
    ragged_rows().map(lambda r: Tensor.from_rows(r[1], r[0])),
    texts.map(Tensor.from_strings),
    blobs.map(lambda b: Tensor.from_strings(b, "bytes")),
)


def sent(tensor: Tensor) -> Tensor:
    """The tensor as it arrives at the other end."""
    frames = encode_request(RequestHeader(v=1, id=b"i", op="infer"), {"x": tensor})
    return decode_request([bytes(frame) for frame in frames], Limits())[1]["x"]


def same(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.shape, bytes(a.data), a.offsets) == (b.dtype, b.shape, bytes(b.data), b.offsets)


@given(arrays())
def test_array_arrives_as_it_was(array: np.ndarray[Any, Any]) -> None:
    arrived = sent(Tensor.from_numpy(array)).to_numpy()
    assert (arrived.dtype, arrived.shape, arrived.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(ragged_rows())
def test_rows_arrive_as_they_were(case: tuple[str, list[np.ndarray[Any, Any]]]) -> None:
    dtype, rows = case
    tensor = sent(Tensor.from_rows(rows, dtype))
    arrived = tensor.rows()
    assert [(r.shape, r.tobytes()) for r in arrived] == [(r.shape, r.tobytes()) for r in rows]
    assert tensor.lengths() == [len(r) for r in rows]


@given(texts)
def test_strings_arrive_as_they_were(values: list[str]) -> None:
    tensor = sent(Tensor.from_strings(values))
    assert tensor.strings() == values
    assert tensor.lengths() == [len(v.encode()) for v in values]


@given(blobs)
def test_byte_strings_arrive_as_they_were(values: list[bytes]) -> None:
    assert sent(Tensor.from_strings(values, "bytes")).raw_strings() == values


@given(tensors, st.data())
def test_slices_put_together_are_the_whole(tensor: Tensor, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, tensor.items), max_size=4)))
    bounds = [0, *cuts, tensor.items]
    parts = [tensor.slice(a, b) for a, b in pairwise(bounds)]
    assert [p.items for p in parts] == [b - a for a, b in pairwise(bounds)]
    assert all(p.signature == tensor.signature for p in parts)
    assert all(p.offsets is None or p.offsets[0] == 0 for p in parts)
    assert same(Tensor.concat(parts), tensor)


@given(tensors)
def test_each_item_alone_is_a_valid_tensor(tensor: Tensor) -> None:
    items = [tensor.slice(i, i + 1) for i in range(tensor.items)]
    assert all(same(sent(item), item) for item in items)
    assert [n for item in items for n in item.lengths()] == tensor.lengths()


@given(tensors)
def test_a_slice_shares_its_bytes(tensor: Tensor) -> None:
    part = tensor.slice(0, tensor.items - 1)
    assert isinstance(part.data, memoryview)
    assert part.data.obj is tensor.data


@given(tensors, st.integers(1, 4))
def test_zeros_are_valid_and_fit_beside_the_others(tensor: Tensor, items: int) -> None:
    zeros = Tensor.zeros(tensor.signature, items)
    assert same(sent(zeros), zeros)
    assert not any(bytes(zeros.data))
    assert Tensor.concat([tensor, zeros]).items == tensor.items + items


def test_whole_slice_is_the_tensor_itself() -> None:
    tensor = Tensor.from_strings(["a", "b"])
    assert tensor.slice(0, 2) is tensor
    assert Tensor.concat([tensor]) is tensor


def test_bf16_is_widened_to_float32() -> None:
    tensor = Tensor("bf16", (3,), b"\x80\x3f\x20\x3e\x80\xff")
    assert tensor.to_numpy().dtype == np.float32
    assert tensor.to_numpy().tolist() == [1.0, 0.15625, -np.inf]


@pytest.mark.parametrize("array", [np.array([[1, 2], [3, 4]], ">i4"), np.array([[1, 3], [2, 4]], "<i4").T])
def test_layout_of_the_array_does_not_matter(array: np.ndarray[Any, Any]) -> None:
    assert Tensor.from_numpy(array).data == np.array([1, 2, 3, 4], "<i4").tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array(1.0),
        np.zeros(2, "c8"),
        np.array(["a"]),
        np.array([None]),
        np.zeros(2, "M8[s]"),
        np.zeros((1,) * 9),
    ],
    ids=["0-d", "complex", "str", "object", "datetime", "9-d"],
)
def test_array_without_wire_form_is_refused(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(TypeError, match="no wire form"):
        Tensor.from_numpy(array)


@pytest.mark.parametrize(
    "rows",
    [[1, 2], [[[1]], [2]], [[[1]], [[1, 2]]], [np.zeros((2, 0)), np.zeros((1, 0))], [np.zeros((1,) * 8)]],
    ids=["scalars", "ranks", "dims", "no-elements", "9-d"],
)
def test_rows_that_do_not_agree_are_refused(rows: Any) -> None:
    with pytest.raises(TypeError, match="agree"):
        Tensor.from_rows(rows)


def test_views_of_the_wrong_kind_are_refused() -> None:
    dense, ragged, text = Tensor.from_numpy(np.zeros(1)), Tensor.from_rows([[1]]), Tensor.from_strings(["a"])
    for read in (ragged.to_numpy, text.to_numpy, text.rows, dense.strings, ragged.raw_strings):
        with pytest.raises(TypeError, match="Tensor"):
            read()


def test_arrays_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Tensor.from_numpy(np.zeros(2)).to_numpy()[0] = 1


def test_lone_surrogate_cannot_be_sent() -> None:
    with pytest.raises(UnicodeEncodeError):
        Tensor.from_strings(["\ud800"])
