"""What is refused before it is queued: each refusal names the input and the limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpu_server.daemon import admission
from gpu_server.daemon.request import Request
from gpu_server.errors import (
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    RemoteError,
    StaleTokenizer,
    UnsupportedOperation,
)
from gpu_server.wire import RequestHeader, Tensor, Tensors
from gpu_server.wire.documents import InputInfo, ModelInfo, TextInfo

FREE = ModelInfo(name="free")
IMAGE = ModelInfo(name="image", inputs=(InputInfo("x", "f32", (2, 3)),), cost=5)
PAIR = ModelInfo(name="pair", inputs=(InputInfo("a", "i64", (-1, 2)), InputInfo("b", "utf8")), cost="a")
TEXT = ModelInfo(
    name="text",
    inputs=(InputInfo("input_ids", "i32", (-1,)),),
    cost="input_ids",
    params={"normalize": True, "dimensions": 0, "scale": 1.0, "anything": None},
    text=TextInfo(digest="a" * 64, max_length=4, vocab_size=100),
)


def build(info: ModelInfo, inputs: Tensors, **header: Any) -> Request:
    made = RequestHeader(v=1, id=b"1", op="infer", **header)
    return admission.build(made, inputs, info, peer=b"p", arrived=1.0, deadline=2.0)


def dense(*shape: int, dtype: str = "float32") -> Tensor:
    return Tensor.from_numpy(np.zeros(shape, dtype))


def ids(*rows: list[int]) -> Tensors:
    return {"input_ids": Tensor.from_rows(rows)}


def test_the_model_asked_for() -> None:
    models = {"free": FREE, "image": IMAGE}
    assert admission.find_model("image", models, "") is IMAGE
    assert admission.find_model("", models, "") is FREE
    with pytest.raises(ModelNotFound, match="'nope' is not served; served: free, image") as error:
        admission.find_model("nope", models, "")
    assert error.value.details == {"models": ["free", "image"]}
    with pytest.raises(ModelLoading, match="warming up free"):
        admission.find_model("free", {}, "warming up free")


def test_a_good_request_carries_everything_over() -> None:
    request = build(IMAGE, {"x": dense(3, 2, 3)}, priority=2)
    assert (request.peer, request.id, request.model, request.priority) == (b"p", b"1", "image", 2)
    assert (request.arrived, request.deadline) == (1.0, 2.0)
    assert list(request.cumulative) == [0, 5, 10, 15]


def test_cost_is_the_length_of_the_named_input() -> None:
    a = Tensor.from_rows([np.zeros((3, 2)), np.zeros((0, 2)), np.zeros((1, 2))], "i64")
    request = build(PAIR, {"a": a, "b": Tensor.from_strings(["", "x", "yy"])})
    assert list(request.cumulative) == [0, 3, 4, 5]


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("length", [0, 2])
def test_equal_rows_may_be_sent_dense(items: int, length: int) -> None:
    inputs = {"a": dense(items, length, 2, dtype="int64"), "b": Tensor.from_strings([""] * items)}
    request = build(PAIR, inputs)
    assert request.inputs["a"].shape == (items, -1, 2)
    assert request.inputs["a"].lengths() == [length] * items


@pytest.mark.parametrize(
    ("info", "inputs", "header", "message"),
    [
        (FREE, {}, {}, "at least one input"),
        (IMAGE, {"y": dense(1, 2, 3)}, {}, "needs the input 'x'"),
        (IMAGE, {"x": dense(1, 2, 3), "z": dense(1)}, {}, "no input 'z'"),
        (IMAGE, {"x": dense(1, 2, 4)}, {}, r"'x' must be f32 \[items, 2, 3\]; got f32 \[1, 2, 4\]"),
        (IMAGE, {"x": dense(1, 2, 3, dtype="float64")}, {}, "must be f32.*got f64"),
        (IMAGE, {"x": Tensor.from_rows([[1.0]], "f32")}, {}, r"got f32 \[1, any\]"),
        (PAIR, {"a": dense(1, 3, dtype="int64"), "b": Tensor.from_strings([""])}, {}, r"i64 \[items, any, 2\]"),
        (PAIR, {"a": dense(1, 3, 2, dtype="int64"), "b": dense(1)}, {}, r"'b' must be utf8 \[items\]"),
        (TEXT, ids([1], []), {}, "item 1 has 0 tokens; a row holds 1 to max_length = 4"),
        (TEXT, ids([1], [1], [1] * 5), {}, "item 2 has 5 tokens.*max_length = 4"),
        (TEXT, ids([1, 2], [3, 100]), {}, "item 1 has token id 100, outside 0 … 99"),
        (TEXT, ids([1, -1], [3]), {}, "item 0 has token id -1"),
        (TEXT, ids([1]), {"params": {"normalize": 1}}, "'normalize' must be bool"),
        (TEXT, ids([1]), {"params": {"dimensions": True}}, "'dimensions' must be int"),
        (TEXT, ids([1]), {"params": {"dimensions": 1.5}}, "'dimensions' must be int"),
        (TEXT, ids([1]), {"params": {"scale": "x"}}, "'scale' must be float"),
        (TEXT, ids([1]), {"params": {"nope": 1}}, "no parameter 'nope'; it has: normalize, dimensions"),
        (IMAGE, {"x": dense(1, 2, 3)}, {"params": {"truncate": True}}, "no parameter 'truncate'; it has: none"),
    ],
)  # fmt: skip
def test_refusals_name_what_is_wrong(
    info: ModelInfo, inputs: Tensors, header: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        build(info, inputs, **header)


def test_refusals_carry_the_limit_in_their_details() -> None:
    with pytest.raises(InvalidRequest) as error:
        build(TEXT, ids([1], [1, 1, 1, 500]))
    assert error.value.details == {"item": 1, "limit": "vocab_size"}
    with pytest.raises(InvalidRequest) as error:
        build(TEXT, ids([1] * 9))
    assert error.value.details == {"item": 0, "limit": "max_length"}


def test_ids_of_another_tokenizer_are_stale() -> None:
    assert build(TEXT, ids([1]), digest="a" * 64).items == 1
    with pytest.raises(StaleTokenizer) as error:
        build(TEXT, ids([1]), digest="b" * 64)
    assert error.value.details == {"digest": "a" * 64}


def test_parameters_of_tokenising_do_not_reach_the_model() -> None:
    params = {"normalize": False, "scale": 2, "anything": "x", "truncate": True, "prompt_name": ""}
    assert build(TEXT, ids([1]), params=params).params == {"normalize": False, "scale": 2, "anything": "x"}


@pytest.mark.parametrize(
    ("info", "one", "other"),
    [
        (FREE, {"x": dense(1)}, {"x": dense(1, dtype="float64")}),
        (FREE, {"x": dense(1)}, {"x": dense(1, 1)}),
        (FREE, {"x": dense(1)}, {"y": dense(1)}),
        (FREE, {"x": dense(1, 2)}, {"x": Tensor.from_rows([[0, 0]], "f32")}),
        (TEXT, {"anything": 1}, {"anything": True}),
        (TEXT, {"anything": 1}, {"anything": 1.0}),
        (TEXT, {"dimensions": 1}, {"dimensions": 2}),
        (TEXT, {"dimensions": 1}, {}),
    ],
)  # fmt: skip
def test_what_differs_is_another_group(info: ModelInfo, one: dict[str, Any], other: dict[str, Any]) -> None:
    if info is FREE:
        assert build(info, one).group != build(info, other).group
    else:
        assert build(info, ids([1]), params=one).group != build(info, ids([1]), params=other).group


def test_what_agrees_is_one_group() -> None:
    assert build(FREE, {"x": dense(1, 2)}).group == build(FREE, {"x": dense(9, 2)}).group
    one = build(TEXT, ids([1]), params={"dimensions": 1, "scale": 1.0, "truncate": True})
    other = build(TEXT, ids([1, 2], [3]), params={"scale": 1.0, "dimensions": 1})
    assert one.group == other.group
    ragged = build(PAIR, {"a": Tensor.from_rows([[[1, 2]]], "i64"), "b": Tensor.from_strings([""])})
    equal = build(PAIR, {"a": dense(1, 1, 2, dtype="int64"), "b": Tensor.from_strings([""])})
    assert ragged.group == equal.group


def test_text_is_for_text_models() -> None:
    text = {"text": Tensor.from_strings(["hi"])}
    own = ModelInfo(name="own", inputs=(InputInfo("text", "utf8"),))
    assert admission.takes_text(TEXT, text)
    assert not admission.takes_text(TEXT, ids([1]))
    assert not admission.takes_text(own, text)
    assert not admission.takes_text(FREE, text)
    with pytest.raises(UnsupportedOperation, match="'image' takes no text"):
        admission.takes_text(IMAGE, text)
    with pytest.raises(InvalidRequest, match="text must be utf8"):
        admission.takes_text(TEXT, {"text": dense(1)})


def test_options_of_tokenising() -> None:
    assert admission.text_options({}) == {"truncate": True, "direction": None, "prompt_name": ""}
    given = {"truncate": False, "truncation_direction": "left", "prompt_name": "query", "other": 1}
    assert admission.text_options(given) == {"truncate": False, "direction": "left", "prompt_name": "query"}


@pytest.mark.parametrize("params", [{"truncate": 1}, {"truncation_direction": "up"}, {"prompt_name": 5}])
def test_bad_options_of_tokenising_are_named(params: dict[str, Any]) -> None:
    with pytest.raises(RemoteError, match=next(iter(params))) as error:
        admission.text_options(params)
    assert error.value.details == {"field": next(iter(params))}


def test_a_model_answers_to_the_last_part_of_its_name_unless_another_has_it() -> None:
    first, second = ModelInfo(name="org/m"), ModelInfo(name="m")
    assert admission.find_model("m", {"org/m": first}, "") is first
    assert admission.find_model("m", {"org/m": first, "m": second}, "") is second
    with pytest.raises(ModelNotFound):
        admission.find_model("org", {"org/m": first}, "")


RERANKER = ModelInfo(
    name="reranker",
    kind="reranker",
    inputs=(InputInfo("input_ids", "i32", (-1,)), InputInfo("token_type_ids", "i32", (-1,))),
    cost="input_ids",
    text=TEXT.text,
)


def test_pairs_are_for_models_that_read_two_texts() -> None:
    pairs = {"text": Tensor.from_strings(["a"]), "text_pair": Tensor.from_strings(["b"])}
    assert admission.takes_text(RERANKER, pairs)
    assert admission.takes_types(RERANKER)
    assert not admission.takes_types(TEXT)
    with pytest.raises(UnsupportedOperation, match="takes no pairs"):
        admission.takes_text(TEXT, pairs)
    with pytest.raises(InvalidRequest, match="text_pair must be utf8"):
        admission.takes_text(RERANKER, {**pairs, "text_pair": dense(1)})


def test_each_token_has_a_type() -> None:
    rows = Tensor.from_rows([[1, 2], [3]])
    assert build(RERANKER, {"input_ids": rows, "token_type_ids": rows}).cumulative == [0, 2, 3]
    other = {"input_ids": rows, "token_type_ids": Tensor.from_rows([[1], [2, 3]])}
    with pytest.raises(InvalidRequest, match="token_type_ids must be as long as input_ids"):
        build(RERANKER, other)
    with pytest.raises(InvalidRequest, match="needs the input 'token_type_ids'"):
        build(RERANKER, {"input_ids": rows})
