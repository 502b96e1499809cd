"""A model's outputs on their way to the wire: out of the model's hands without waiting, then into tensors of items."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch

from gpu_server.errors import ModelFailed
from gpu_server.models.base import Ragged
from gpu_server.models.landed import Landed
from gpu_server.wire import ItemError, Tensor, Tensors
from gpu_server.wire.convert import as_tensor, has_entries
from gpu_server.wire.limits import MAX_DIMENSIONS
from gpu_server.wire.tensor import NUMPY_DTYPE

Staged = dict[str, Any]

MAX_OUTPUTS = 16
MAX_NAME_LENGTH = 64


def stage(outputs: Mapping[str, Any]) -> Staged:
    """Copy what a later forward could overwrite: device tensors into pinned memory, those on the host at once.

    Wait for the device before `finish`. Raises ModelFailed, naming the output, if a tensor has no wire form or an output a
    name that cannot be sent.
    """
    _check_names(outputs)
    return {name: _stage(name, value) for name, value in outputs.items()}


def finish(staged: Staged, items: int, check_finite: bool) -> tuple[Tensors, list[ItemError]]:
    """Wire tensors of `items` rows each, and when `check_finite` the items with NaN or infinity, their rows blanked.

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
            for item in not_finite(tensor):
                errors[item] = ItemError(item, ModelFailed.code, f"output {name!r} holds NaN or infinity")
    if not errors:
        return tensors, []
    failed = sorted(errors)
    return {name: _blanked(tensor, failed) for name, tensor in tensors.items()}, [errors[i] for i in failed]


def _check_names(outputs: Mapping[str, Any]) -> None:
    if not outputs:
        raise ModelFailed("the model returned no outputs")
    if len(outputs) > MAX_OUTPUTS:
        raise ModelFailed(f"the model returned {len(outputs)} outputs; at most {MAX_OUTPUTS} can be sent")
    for name in outputs:
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_LENGTH or not _is_unicode(name):
            raise ModelFailed(
                f"an output is named {name!r:.80}; a name is a str of 1 to {MAX_NAME_LENGTH} characters"
            )


def _is_unicode(name: str) -> bool:
    """Whether a name has no lone surrogates, which UTF-8 cannot carry."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _stage(name: str, value: Any) -> Any:
    """A whole tensor gets its wire form before its bytes are there: the device works meanwhile."""
    if isinstance(value, tuple) and not isinstance(value, Ragged):
        raise ModelFailed(f"output {name!r} is a tuple, whose parts have no names: return a dict of outputs")
    if isinstance(value, Landed):
        return value, _dense(value.rows)
    try:
        host = _to_host(value)
    except (TypeError, ValueError) as error:
        raise ModelFailed(f"output {name!r} cannot be sent: {error}") from None
    return _to_wire(name, host) if isinstance(host, torch.Tensor) else host


def _to_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.device.type == "cpu":
            return _own(value)
        if value.dtype is torch.bfloat16:
            value = value.float()
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return host.copy_(value, non_blocking=True)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Ragged):
        return Ragged(_to_host(value.values), [int(length) for length in value.lengths])
    if isinstance(value, list | tuple):
        return [_to_host(v) for v in value]
    return value


def _own(value: torch.Tensor) -> torch.Tensor:
    """A copy that no later forward overwrites; bfloat16 widened."""
    if value.is_pinned():
        # The model's own copy off the device may still be under way.
        torch.cuda.current_stream().synchronize()
    dtype = torch.float32 if value.dtype is torch.bfloat16 else value.dtype
    return value.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _to_wire(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple) and isinstance(value[0], Landed):
        value[0].take()
        return cast(Tensor, value[1])
    try:
        if isinstance(value, torch.Tensor):
            return _dense(value.contiguous().numpy())
        if isinstance(value, Ragged):
            return _rows_of(value)
        if isinstance(value, list) and value:
            if all(isinstance(v, torch.Tensor) for v in value):
                return _ragged([v.numpy() for v in value])
            if all(isinstance(v, np.ndarray) for v in value):
                return _ragged(value)
        if not has_entries(value):
            raise TypeError(
                f"it is of type {type(value).__name__}; an output is a tensor, an array or a list, with one entry per item"
            )
        return as_tensor(value)
    except (TypeError, ValueError) as error:
        raise ModelFailed(f"output {name!r} cannot be sent: {error}") from None


def _dense(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor over the array's own memory: outputs are large, and the socket copies them once anyway."""
    if array.ndim == 0:
        raise TypeError("a scalar has no rows")
    dtype = Tensor.from_numpy(array[:0]).dtype
    wire = array.astype(NUMPY_DTYPE[dtype], copy=False)
    return Tensor(dtype, array.shape, wire.reshape(-1).view(np.uint8).data)


def _rows_of(value: Ragged) -> Tensor:
    flat = _dense(np.asarray(value.values))
    if len(flat.shape) >= MAX_DIMENSIONS:
        raise TypeError(f"rows of {len(flat.shape)} dimensions; at most {MAX_DIMENSIONS - 1} can be sent")
    if min(value.lengths, default=0) < 0:
        raise TypeError("a length below 0")
    offsets = [0, *accumulate(value.lengths)]
    if offsets[-1] != flat.items or 0 in flat.shape[1:]:
        raise TypeError(f"{flat.items} rows, of lengths that add up to {offsets[-1]}")
    return Tensor(flat.dtype, (len(value.lengths), -1, *flat.shape[1:]), flat.data, offsets)


def _ragged(rows: list[np.ndarray[Any, Any]]) -> Tensor:
    """Rows of one type, which is the output's: it must not depend on which rows a batch happens to have."""
    dtypes = {row.dtype for row in rows}
    if len(dtypes) > 1:
        raise TypeError(f"rows of different types: {', '.join(sorted(map(str, dtypes)))}")
    if not any(row.ndim for row in rows):
        return _dense(np.stack(rows))
    return Tensor.from_rows(rows, Tensor.from_numpy(np.empty(0, rows[0].dtype)).dtype)


def _blanked(tensor: Tensor, items: list[int]) -> Tensor:
    """The same tensor, with zeros (dense) or nothing in the rows `items`, which ascend."""
    parts, at = [], 0
    for item in items:
        parts += [tensor.slice(at, item), Tensor.zeros(tensor.signature, 1)]
        at = item + 1
    return Tensor.concat([*parts, tensor.slice(at, tensor.items)])


def not_finite(tensor: Tensor) -> list[int]:
    """The items of a float tensor that hold NaN or infinity."""
    if tensor.offsets is not None:
        return [i for i, row in enumerate(tensor.rows()) if not np.isfinite(row.astype(np.float64)).all()]
    finite = np.isfinite(tensor.to_numpy())
    if finite.all():
        return []
    return [int(i) for i in np.flatnonzero(~finite.reshape(tensor.items, -1).all(axis=1))]
