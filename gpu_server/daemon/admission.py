"""From a decoded message to a request that may be queued: checked against what its model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from gpu_server.daemon.request import Group, Request
from gpu_server.errors import (
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    StaleTokenizer,
    UnsupportedOperation,
)
from gpu_server.wire import RequestHeader, Tensor, Tensors
from gpu_server.wire.declared import check_inputs
from gpu_server.wire.documents import PAIR_KINDS, ModelInfo, answers_to

TEXTS = frozenset({"text", "text_pair"})
TEXT_PARAMS = frozenset({"truncate", "truncation_direction", "prompt_name"})


def find_model(name: str, models: Mapping[str, ModelInfo], phase: str) -> ModelInfo:
    """The model of that name (or whose name ends in it after a «/»), "" for the first.

    Raises ModelLoading before any is loaded, ModelNotFound after.
    """
    if not models:
        raise loading(phase)
    info = models.get(name) if name else next(iter(models.values()))
    if info is None:
        info = next((known for known in models.values() if answers_to(known, name)), None)
    if info is None:
        raise ModelNotFound(
            f"model {name!r} is not served; served: {', '.join(models)}", {"models": list(models)}
        )
    return info


def loading(phase: str) -> ModelLoading:
    """The refusal of a request that no model is there for yet."""
    return ModelLoading(f"the models are still loading ({phase})", {"phase": phase})


def takes_text(info: ModelInfo, inputs: Tensors) -> bool:
    """Whether these inputs are text to be tokenised here. Raises UnsupportedOperation if the model takes none."""
    if "text" not in inputs or not inputs.keys() <= TEXTS or any(i.name == "text" for i in info.inputs):
        return False
    if info.text is None:
        if not info.inputs:
            return False
        raise UnsupportedOperation(f"model {info.name!r} takes no text")
    if "text_pair" in inputs and info.kind not in PAIR_KINDS:
        raise UnsupportedOperation(f"model {info.name!r} takes no pairs of texts")
    for name, tensor in inputs.items():
        if tensor.dtype != "utf8":
            raise InvalidRequest(f"{name} must be utf8")
    return True


def build(
    header: RequestHeader, inputs: Tensors, info: ModelInfo, *, peer: bytes, arrived: float, deadline: float
) -> Request:
    """The request to queue; raises InvalidRequest or StaleTokenizer, naming the input and the limit."""
    check_inputs(info, inputs)
    if header.digest and info.text is not None and header.digest != info.text.digest:
        raise StaleTokenizer(f"model {info.name!r} now has another tokenizer", {"digest": info.text.digest})
    if info.text is not None:
        _check_ids(inputs["input_ids"], info.text.max_length, info.text.vocab_size)
        if "token_type_ids" in inputs and inputs["token_type_ids"].offsets != inputs["input_ids"].offsets:
            raise InvalidRequest("token_type_ids must be as long as input_ids", {"field": "token_type_ids"})
    params = _check_params(header.params, info) if header.params else {}
    return Request(
        peer=peer,
        id=header.id,
        model=info.name,
        inputs=inputs,
        params=params,
        cumulative=_cumulative_costs(info, inputs),
        priority=header.priority,
        arrived=arrived,
        deadline=deadline,
        group=_group(info, inputs, params),
        traceparent=header.traceparent,
    )


def _group(info: ModelInfo, inputs: Tensors, params: dict[str, Any]) -> Group:
    """Declared inputs are alike in every request; others must agree in dtype and shape to share a batch.

    Parameters carry their type, which tells 1 from 1.0 and True.
    """
    signatures = () if info.inputs else tuple((name, t.signature) for name, t in inputs.items())
    typed = tuple((name, type(params[name]), params[name]) for name in sorted(params)) if params else ()
    return (info.name, signatures, typed)


def _check_params(given: Mapping[str, Any], info: ModelInfo) -> dict[str, Any]:
    params = {}
    for name, value in given.items():
        if name in info.params:
            default = info.params[name]
            wanted = type(default)
            if default is not None and not _is_a(value, wanted):
                raise InvalidRequest(f"parameter {name!r} must be {wanted.__name__}", {"field": name})
            params[name] = value
        elif info.text is None or name not in TEXT_PARAMS:
            known = ", ".join(info.params) or "none"
            raise InvalidRequest(
                f"model {info.name!r} has no parameter {name!r}; it has: {known}", {"field": name}
            )
    return params


def _is_a(value: object, wanted: type) -> bool:
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)


def _check_ids(ids: Tensor, max_length: int, vocab_size: int) -> None:
    lengths = ids.lengths()
    if min(lengths) < 1 or max(lengths) > max_length:
        item = next(i for i, n in enumerate(lengths) if not 1 <= n <= max_length)
        raise InvalidRequest(
            f"item {item} has {lengths[item]} tokens; a row holds 1 to max_length = {max_length}",
            {"item": item, "limit": "max_length"},
        )
    # Unsigned, a negative id is a large one. Of a few thousand ids, numpy finds the place of the largest sooner than itself.
    values = np.frombuffer(ids.data, np.uint32)
    if values.item(values.argmax()) >= vocab_size:
        at = int(np.argmax(values >= vocab_size))
        item = int(np.searchsorted(np.asarray(ids.offsets), at, side="right")) - 1
        raise InvalidRequest(
            f"item {item} has token id {int(values.view(np.int32)[at])}, outside 0 … {vocab_size - 1}",
            {"item": item, "limit": "vocab_size"},
        )


def _cumulative_costs(info: ModelInfo, inputs: Tensors) -> Sequence[int]:
    """The sums of what each item costs: its rows, but one at least; or as much as every other."""
    if isinstance(info.cost, int):
        return range(0, info.cost * next(iter(inputs.values())).items + 1, info.cost)
    tensor = inputs[info.cost]
    # No text has been let in without a token.
    filled = info.text is not None and info.cost == "input_ids"
    if tensor.offsets is not None and (filled or len(set(tensor.offsets)) == len(tensor.offsets)):
        return tensor.offsets
    return [0, *accumulate([max(1, n) for n in tensor.lengths()])]


def takes_types(info: ModelInfo) -> bool:
    """Whether the model tells the texts of a pair apart by the types of their tokens."""
    return any(declared.name == "token_type_ids" for declared in info.inputs)


def text_options(params: Mapping[str, Any]) -> dict[str, Any]:
    """Tokenising options out of a text request's parameters; raises InvalidRequest on values of the wrong kind."""
    truncate, direction = params.get("truncate", True), params.get("truncation_direction")
    prompt = params.get("prompt_name", "")
    if not isinstance(truncate, bool):
        raise InvalidRequest("truncate must be a bool", {"field": "truncate"})
    if direction not in (None, "left", "right"):
        raise InvalidRequest("truncation_direction must be left or right", {"field": "truncation_direction"})
    if not isinstance(prompt, str):
        raise InvalidRequest("prompt_name must be a string", {"field": "prompt_name"})
    return {"truncate": truncate, "direction": direction, "prompt_name": prompt}
