"""Python values to wire tensors: arrays, nested lists, id lists, strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu_server.wire.tensor import NUMPY_DTYPE, STRING_DTYPES, Tensor


def as_tensor(values: Any, dtype: str | None = None, ragged: bool | None = None) -> Tensor:
    """The wire form of one input: an array `[items, …]`, a list of per-item arrays or id lists, or a list of str or bytes.

    `dtype` (a wire name) converts numbers; without it arrays keep their type and lists become f32, i64 or bool.
    `ragged` sends rows with their lengths; without it only rows of unequal length are. Raises TypeError on values that
    have no wire form, ValueError or OverflowError on values that do not fit.
    """
    if isinstance(values, Tensor):
        return values
    if not has_entries(values):
        raise TypeError("an input is a list (or array) with one entry per item")
    if len(values) and isinstance(values[0], str | bytes):
        return _strings(values, dtype)
    wanted = None
    if dtype is not None:
        wanted = NUMPY_DTYPE.get(dtype)
        if wanted is None:
            raise TypeError(f"numbers cannot be sent as {dtype}")
    if ragged or (ragged is None and _is_jagged(values)):
        return _ragged(values, dtype)
    array = _array(values)
    _check_numbers(array)
    if wanted is None and not isinstance(values, np.ndarray) and array.dtype == np.float64:
        wanted = np.dtype("<f4")
    return Tensor.from_numpy(array if wanted is None else _cast(array, wanted))


def has_entries(values: Any) -> bool:
    """Whether a value may have one entry per item, as a list or an array has."""
    return hasattr(values, "__len__") and not isinstance(values, str | bytes | dict)


def _strings(values: Sequence[Any], dtype: str | None) -> Tensor:
    kind = dtype or ("utf8" if isinstance(values[0], str) else "bytes")
    if kind not in STRING_DTYPES:
        raise TypeError(f"strings cannot be sent as {dtype}")
    if not all(isinstance(v, type(values[0])) for v in values):
        raise TypeError("a list of strings must hold only str, or only bytes")
    return Tensor.from_strings(values, kind)


def _ragged(values: Sequence[Any], dtype: str | None) -> Tensor:
    rows = [_array(v) for v in values]
    filled = [r for r in rows if r.size]
    for row in filled:
        _check_numbers(row)
    if dtype is None:
        kinds = {r.dtype.kind for r in filled}
        dtype = "f32" if "f" in kinds else "bool" if kinds == {"b"} else "i64"
    return Tensor.from_rows([_cast(r, NUMPY_DTYPE[dtype]) for r in rows], dtype)


def _array(values: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(values)
    except ValueError:
        raise ValueError("lists of unequal length where one shape is expected") from None


def _cast(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if dtype.kind in "iu" and array.size:
        if array.dtype.kind == "f":
            raise ValueError(f"floats where {dtype.name} is expected")
        bounds = np.iinfo(dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise ValueError(f"values outside {dtype.name}")
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype)
    except FloatingPointError:
        raise ValueError(f"values outside {dtype.name}") from None


def _check_numbers(array: np.ndarray[Any, Any]) -> None:
    if array.dtype.kind not in "iufb":
        raise TypeError("numbers expected")


def _is_jagged(values: Sequence[Any]) -> bool:
    if not len(values) or not all(isinstance(v, list | tuple | np.ndarray) for v in values):
        return False
    return len({len(v) for v in values}) > 1
