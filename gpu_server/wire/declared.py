"""Whether inputs are what their model declares: names, types and shapes."""

from __future__ import annotations

from gpu_server.errors import InvalidRequest
from gpu_server.wire.documents import InputInfo, ModelInfo
from gpu_server.wire.message import Tensors
from gpu_server.wire.tensor import Tensor


def check_inputs(info: ModelInfo, inputs: Tensors) -> None:
    """Refuse inputs that a model does not take; dense rows of a declared ragged input are made ragged in place.

    Raises InvalidRequest naming the input.
    """
    if not inputs:
        raise InvalidRequest("infer needs at least one input")
    for declared in info.inputs:
        _check_input(declared, inputs, info)
    if info.inputs and len(inputs) != len(info.inputs):
        extra = sorted(set(inputs) - {i.name for i in info.inputs})
        raise InvalidRequest(f"model {info.name!r} has no input {extra[0]!r}", {"field": extra[0]})


def _check_input(declared: InputInfo, inputs: Tensors, info: ModelInfo) -> None:
    tensor = inputs.get(declared.name)
    if tensor is None:
        raise InvalidRequest(
            f"model {info.name!r} needs the input {declared.name!r}", {"field": declared.name}
        )
    if tensor.dtype == declared.dtype and tensor.shape[1:] == declared.shape:
        return
    if tensor.dtype != declared.dtype or not _is_row(tensor, declared):
        wanted = f"{declared.dtype} [items{''.join(f', {_dim(d)}' for d in declared.shape)}]"
        got = f"{tensor.dtype} [{', '.join(_dim(d) for d in tensor.shape)}]"
        raise InvalidRequest(f"input {declared.name!r} must be {wanted}; got {got}", {"field": declared.name})
    inputs[declared.name] = _to_ragged(tensor)


def _is_row(tensor: Tensor, declared: InputInfo) -> bool:
    """Whether a dense tensor may stand for a declared ragged one."""
    ragged, dense = declared.shape[:1] == (-1,), tensor.offsets is None and len(tensor.shape) > 1
    return ragged and dense and tensor.shape[2:] == declared.shape[1:]


def _to_ragged(tensor: Tensor) -> Tensor:
    """A dense tensor as the ragged one with equal rows that it also is."""
    items, length, *rest = tensor.shape
    offsets = list(range(0, items * length + 1, length)) if length else [0] * (items + 1)
    return Tensor(tensor.dtype, (items, -1, *rest), tensor.data, offsets)


def _dim(size: int) -> str:
    return "any" if size == -1 else str(size)
