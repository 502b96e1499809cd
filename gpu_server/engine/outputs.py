"""A model's outputs on their way to the wire: off the device without waiting, then into tensors of items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gpu_server.errors import ModelFailed
from gpu_server.wire import ItemError, Tensor, Tensors
from gpu_server.wire.convert import as_tensor

Staged = dict[str, Any]


def stage(outputs: Mapping[str, Any]) -> Staged:
    """Start copying device tensors into pinned host memory; everything else passes. Wait for the device before `finish`."""
    return {name: _to_host(value) for name, value in outputs.items()}


def finish(staged: Staged, items: int, check_finite: bool) -> tuple[Tensors, list[ItemError]]:
    """Wire tensors of `items` rows each, and the rows that hold NaN or infinity when `check_finite`.

    Raises ModelFailed, naming the output, if one has another number of rows or no wire form.
    """
    tensors: Tensors = {}
    errors: dict[int, ItemError] = {}
    for name, value in staged.items():
        tensor = _to_wire(name, value)
        if tensor.items != items:
            raise ModelFailed(f"output {name!r} has {tensor.items} rows for {items} items")
        tensors[name] = tensor
        if check_finite and tensor.dtype in ("f16", "f32", "f64"):
            for item in _not_finite(tensor):
                errors[item] = ItemError(item, ModelFailed.code, f"output {name!r} holds NaN or infinity")
    if not tensors:
        raise ModelFailed("the model returned no outputs")
    return tensors, [errors[item] for item in sorted(errors)]


def _to_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.dtype is torch.bfloat16:
            value = value.float()
        if value.device.type == "cpu":
            return value
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return host.copy_(value, non_blocking=True)
    if isinstance(value, list | tuple):
        return [_to_host(v) for v in value]
    return value


def _to_wire(name: str, value: Any) -> Tensor:
    try:
        if isinstance(value, torch.Tensor):
            return _dense(value.contiguous().numpy())
        if isinstance(value, list) and value and all(isinstance(v, torch.Tensor) for v in value):
            return as_tensor([v.numpy() for v in value], ragged=True)
        return as_tensor(value)
    except (TypeError, ValueError) as error:
        raise ModelFailed(f"output {name!r} cannot be sent: {error}") from None


def _dense(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor over the array's own memory: outputs are large, and the socket copies them once anyway."""
    if array.ndim == 0:
        raise TypeError("a scalar has no rows")
    shell = Tensor.from_numpy(array[:0])
    return Tensor(shell.dtype, array.shape, array.reshape(-1).view(np.uint8).data)


def _not_finite(tensor: Tensor) -> list[int]:
    if tensor.offsets is not None:
        return [i for i, row in enumerate(tensor.rows()) if not np.isfinite(row.astype(np.float64)).all()]
    array = tensor.to_numpy().reshape(tensor.items, -1)
    with np.errstate(all="ignore"):
        # One sum settles the usual case: it is finite only if every element is (or it overflows, and we look closer).
        if np.isfinite(array.sum(dtype=np.float64)):
            return []
    return [int(i) for i in np.flatnonzero(~np.isfinite(array).all(axis=1))]
