"""What a forward returned becomes wire tensors of one row an item."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gpu_server.engine import outputs
from gpu_server.errors import ModelFailed
from gpu_server.models.base import Ragged
from gpu_server.wire import VERSION, ReplyHeader, Tensor, decode_reply, encode_reply


def finish(value: Any, items: int, check_finite: bool = False) -> tuple[Tensor, list[int]]:
    tensors, errors = outputs.finish(outputs.stage({"y": value}), items, check_finite)
    return tensors["y"], [error.item for error in errors]


@pytest.mark.parametrize(
    ("dtype", "wire"),
    [
        (torch.float32, "f32"), (torch.float16, "f16"), (torch.float64, "f64"), (torch.bfloat16, "f32"),
        (torch.int64, "i64"), (torch.int32, "i32"), (torch.uint8, "u8"), (torch.bool, "bool"),
    ],
)  # fmt: skip
def test_dense_tensors(dtype: torch.dtype, wire: str) -> None:
    value = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    tensor, _ = finish(value, 2)
    assert (tensor.dtype, tensor.shape) == (wire, (2, 2))
    assert tensor.to_numpy().astype(int).tolist() == [[0, 1], [1, 0]]


def test_layouts_that_are_not_row_major() -> None:
    value = torch.arange(6.0).reshape(2, 3)
    for view in (value.T, value[:, ::2], value.expand(2, 3), value[::1].flip(0)):
        tensor, _ = finish(view, len(view))
        np.testing.assert_array_equal(tensor.to_numpy(), view.numpy())


def test_tensors_with_a_gradient() -> None:
    assert finish(torch.ones(2, requires_grad=True), 2)[0].items == 2


def test_empty_dimensions() -> None:
    assert finish(torch.zeros(3, 0), 3)[0].shape == (3, 0)


def test_lists_of_tensors_are_ragged_even_when_equal() -> None:
    tensor, _ = finish([torch.tensor([1, 2]), torch.tensor([3, 4])], 2)
    assert (tensor.shape, tensor.lengths()) == ((2, -1), [2, 2])
    half, _ = finish([torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(0, 2, dtype=torch.bfloat16)], 2)
    assert (half.dtype, half.shape, half.lengths()) == ("f32", (2, -1, 2), [1, 0])


def test_other_values() -> None:
    assert finish(["a", "ü"], 2)[0].strings() == ["a", "ü"]
    assert finish([b"\0", b""], 2)[0].raw_strings() == [b"\0", b""]
    assert finish(np.arange(2), 2)[0].dtype == "i64"
    assert finish([0.5, 1.5], 2)[0].dtype == "f32"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(3), "'y' has 3 rows for 2 items"),
        (["a"], "'y' has 1 rows for 2 items"),
        (torch.tensor(1.0), "a scalar has no rows"),
        (torch.zeros(2, dtype=torch.complex64), "no wire form"),
        (torch.zeros(2, 1, 1, 1, 1, 1, 1, 1, 1), "no wire form"),
        ([torch.zeros(1, 2), torch.zeros(1, 3)], "must agree in every dimension"),
        (["a", b"b"], "only str, or only bytes"),
        ([None, None], "numbers expected"),
        (
            object(),
            "sent: it is of type object; an output is a tensor, an array or a list, with one entry per item",
        ),
        (None, "it is of type NoneType; an output is"),
        ("ab", "it is of type str; an output is"),
        ({"a": 1}, "it is of type dict; an output is"),
        ([torch.tensor([1]), torch.tensor([0.5])], "rows of different types: float32, int64"),
        ([np.zeros(1, "f4"), np.zeros(1, "i4")], "rows of different types: float32, int32"),
    ],
)
def test_what_has_no_wire_form_is_named(value: object, reason: str) -> None:
    with pytest.raises(ModelFailed, match=reason):
        finish(value, 2)


def test_no_outputs_at_all() -> None:
    with pytest.raises(ModelFailed, match="returned no outputs"):
        outputs.stage({})


def test_rows_that_are_not_finite() -> None:
    value = torch.zeros(4, 2)
    assert finish(value, 4, check_finite=True)[1] == []
    value[1, 1], value[2, 0] = float("nan"), float("-inf")
    assert finish(value, 4, check_finite=True)[1] == [1, 2]
    assert finish(value, 4)[1] == []
    ragged = [torch.tensor([1.0]), torch.tensor([]), torch.tensor([float("nan")])]
    assert finish(ragged, 3, check_finite=True)[1] == [2]


def test_sums_that_overflow_and_opposite_infinities_are_looked_at_closely() -> None:
    large = torch.full((3, 2), 1e308, dtype=torch.float64)
    assert finish(large, 3, check_finite=True)[1] == []
    opposite = torch.tensor([[float("inf"), float("-inf")], [1.0, 1.0]])
    assert finish(opposite, 2, check_finite=True)[1] == [0]


def test_an_item_bad_in_two_outputs_is_one_error() -> None:
    bad = torch.tensor([float("nan"), 0.0])
    _, errors = outputs.finish(outputs.stage({"a": bad, "b": bad}), 2, True)
    assert [error.item for error in errors] == [0]


def hosted(buffer: torch.Tensor) -> list[Any]:
    """Every form in which a model may hand out its own buffer."""
    return [
        buffer,
        buffer[:, 1:],
        buffer.T[:2],
        buffer.numpy(),
        buffer.numpy()[:, 1:],
        list(buffer),
        list(buffer.numpy()),
    ]


@pytest.mark.parametrize("form", range(7))
def test_an_answer_outlives_the_models_next_forward(form: int) -> None:
    buffer = torch.ones(2, 3)
    staged = outputs.stage({"y": hosted(buffer)[form]})
    buffer.zero_()
    tensor = outputs.finish(staged, 2, False)[0]["y"]
    buffer.zero_()
    assert all((row == 1).all() and row.size for row in tensor.rows())


@pytest.mark.parametrize(
    ("dtype", "wire"),
    [
        (torch.float16, "f16"),
        (torch.bfloat16, "f32"),
        (torch.int32, "i32"),
        (torch.float64, "f64"),
        (torch.uint8, "u8"),
    ],
)
def test_ragged_rows_have_the_type_of_their_tensors(dtype: torch.dtype, wire: str) -> None:
    for lengths in ([2, 0], [0, 0]):
        rows = [torch.zeros(n, dtype=dtype) for n in lengths]
        assert finish(rows, 2)[0].signature == (wire, (-1,))
        if dtype is not torch.bfloat16:
            assert finish([row.numpy() for row in rows], 2)[0].signature == (wire, (-1,))


def test_arrays_of_equal_length_are_ragged_too() -> None:
    assert finish([np.zeros(2), np.zeros(2)], 2)[0].signature == ("f64", (-1,))


@pytest.mark.parametrize("name", ["", "n" * 65, 3, None, "lone \ud800"])
def test_a_name_that_cannot_be_sent(name: object) -> None:
    with pytest.raises(ModelFailed, match="a name is a str of 1 to 64 characters"):
        outputs.finish(outputs.stage({name: torch.zeros(2)}), 2, False)  # type: ignore[dict-item]


def test_more_outputs_than_a_reply_holds() -> None:
    many = {f"y{n}": torch.zeros(2) for n in range(17)}
    with pytest.raises(ModelFailed, match="returned 17 outputs; at most 16"):
        outputs.finish(outputs.stage(many), 2, False)
    del many["y16"]
    assert len(outputs.finish(outputs.stage(many), 2, False)[0]) == 16


def test_rows_of_items_that_are_not_finite_are_blank_in_every_output() -> None:
    nan = float("nan")
    values = {
        "dense": torch.tensor([[1.0, nan], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]),
        "ragged": [torch.tensor(row) for row in ([1.0], [2.0, 2.0], [3.0], [nan, 4.0])],
        "text": ["a", "bb", "c", "d"],
        "empty": torch.zeros(4, 0),
    }
    tensors, errors = outputs.finish(outputs.stage(values), 4, True)
    assert [error.item for error in errors] == [0, 3]
    assert tensors["dense"].to_numpy().tolist() == [[0, 0], [2, 2], [3, 3], [0, 0]]
    assert [row.tolist() for row in tensors["ragged"].rows()] == [[], [2, 2], [3], []]
    assert tensors["text"].strings() == ["", "bb", "c", ""]
    assert tensors["empty"].shape == (4, 0)


@pytest.mark.parametrize(
    "values", [torch.arange(12.0).view(6, 2), np.arange(12, dtype=np.float32).reshape(6, 2)]
)
def test_rows_of_all_items_end_to_end(values: Any) -> None:
    tensor, errors = finish(Ragged(values, np.array([1, 0, 5])), 3, check_finite=True)
    assert (tensor.shape, tensor.lengths(), errors) == ((3, -1, 2), [1, 0, 5], [])
    np.testing.assert_array_equal(tensor.rows()[2], np.arange(2, 12).reshape(5, 2))


def test_rows_that_are_not_finite_fail_their_item() -> None:
    tensor, errors = finish(Ragged(torch.tensor([1.0, torch.nan, 2.0]), [1, 1, 1]), 3, check_finite=True)
    assert (errors, tensor.lengths()) == ([1], [1, 0, 1])


@pytest.mark.parametrize("lengths", [[1, 1], [3, 1], []])
def test_lengths_must_add_up(lengths: list[int]) -> None:
    with pytest.raises(ModelFailed, match="add up"):
        finish(Ragged(torch.ones(3), lengths), len(lengths))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_lengths_are_the_models_own_to_change(kind: Any) -> None:
    lengths = kind([1, 2])
    staged = outputs.stage({"y": Ragged(torch.arange(3.0), lengths)})
    lengths[0], lengths[1] = 2, 1
    assert outputs.finish(staged, 2, False)[0]["y"].lengths() == [1, 2]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Ragged(np.zeros(5), [-1, 3, 3]), "a length below 0"),
        (Ragged(np.zeros((3, 1, 1, 1, 1, 1, 1, 1)), [1, 1, 1]), "rows of 8 dimensions; at most 7"),
        (Ragged(np.zeros(3), None), "'y' cannot be sent"),  # type: ignore[arg-type]
    ],
)
def test_rows_that_no_reply_can_carry_are_named(value: Ragged, reason: str) -> None:
    with pytest.raises(ModelFailed, match=reason):
        finish(value, 3)


def test_rows_of_the_most_dimensions_can_be_read_again() -> None:
    tensor, _ = finish(Ragged(np.zeros((3, 1, 1, 1, 1, 1, 1)), [1, 0, 2]), 3)
    frames = encode_reply(ReplyHeader(v=VERSION, id=b"1"), {"y": tensor})
    assert decode_reply([bytes(frame) for frame in frames])[1]["y"].shape == (3, -1, *[1] * 6)


def test_numbers_of_the_other_byte_order() -> None:
    rows = np.array([1, 2, 3], ">f4")
    ragged, _ = finish(Ragged(rows, [2, 1]), 2)
    assert [row.tolist() for row in ragged.rows()] == [[1, 2], [3]]
    scalars, _ = finish([rows[0, ...], rows[1, ...]], 2)
    assert scalars.to_numpy().tolist() == [1, 2]


def test_a_list_of_scalars_is_one_number_an_item() -> None:
    tensor, _ = finish([torch.tensor(1.5), torch.tensor(2.5)], 2)
    assert (tensor.dtype, tensor.shape, tensor.to_numpy().tolist()) == ("f32", (2,), [1.5, 2.5])


def test_a_tuple_is_not_taken_for_rows() -> None:
    with pytest.raises(ModelFailed, match=r"output 'y' is a tuple.* return a dict"):
        finish((torch.zeros(2), torch.ones(2)), 2)
