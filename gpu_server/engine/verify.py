"""Whether a model that has just been loaded answers as it must: the last check before it is let in front of callers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpu_server.engine.blame import Blame
from gpu_server.engine.outputs import not_finite
from gpu_server.engine.runner import Runner
from gpu_server.errors import ConfigError, InvalidRequest, ModelFailed, RemoteError, from_wire
from gpu_server.wire import Tensor, Tensors
from gpu_server.wire.convert import as_tensor
from gpu_server.wire.declared import check_inputs
from gpu_server.wire.documents import InputInfo, ModelInfo


def run(info: ModelInfo, runner: Runner, given: Mapping[str, Any]) -> Tensors:
    """The outputs of a warm-up batch: its inputs are checked as a request's are, and each of its items must be answered.

    Raises ConfigError on inputs that the model does not declare, RemoteError naming the model and, where its code raised,
    the place.
    """
    inputs = requested(info, given)
    try:
        outputs, errors = runner.run(inputs)
    except RemoteError as error:
        raise from_wire(error.code, _fails(info, runner.raised or error.message)) from None
    if errors:
        raise from_wire(errors[0].code, _fails(info, runner.raised or errors[0].message))
    check_finite(info.name, outputs)
    return outputs


def requested(info: ModelInfo, given: Mapping[str, Any]) -> Tensors:
    """What a warm-up batch holds, in the form in which requests reach the model. Raises ConfigError naming the input."""
    declared = {known.name: known for known in info.inputs}
    try:
        inputs = {name: _tensor(name, values, declared.get(name)) for name, values in given.items()}
        check_inputs(info, inputs)
    except InvalidRequest as error:
        raise ConfigError(f"{info.source}: its example is no valid request: {error}") from None
    return inputs


def check_finite(name: str, outputs: Tensors) -> None:
    """Refuse a value that is no finite number. Raises ModelFailed, naming the model and the output."""
    for output, tensor in outputs.items():
        if tensor.dtype in ("f16", "f32", "f64") and not_finite(tensor):
            raise ModelFailed(
                f"model {name!r} answers its own example with NaN or infinity in output {output!r}"
            )


def _fails(info: ModelInfo, why: Blame | str) -> str:
    return f"model {info.name!r} fails on its own example: {why}"


def _tensor(name: str, values: Any, declared: InputInfo | None) -> Tensor:
    if declared is None or isinstance(values, Tensor):
        dtype = ragged = None
    else:
        dtype, ragged = declared.dtype, declared.shape[:1] == (-1,)
    try:
        if dtype != "bf16":
            return as_tensor(values, dtype, ragged)
        # Numpy has no such type; the upper half of a float32 is one.
        wide = as_tensor(values, "f32", ragged)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"input {name!r}: {error}") from None
    narrow = (np.frombuffer(wide.data, "<u4") >> 16).astype("<u2")
    return Tensor("bf16", wide.shape, narrow.tobytes(), wide.offsets)
