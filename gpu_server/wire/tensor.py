"""A tensor of items as it travels: dtype, shape and raw little-endian bytes (PROTOCOL section 3)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import prod
from operator import sub

import msgspec
import numpy as np
from numpy.typing import NDArray

from gpu_server.wire.limits import MAX_DIMENSIONS

Buffer = bytes | bytearray | memoryview
Array = NDArray[np.generic]

ITEMSIZE: dict[str, int] = {
    "bool": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "u8": 1, "u16": 2, "u32": 4, "u64": 8,
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "utf8": 1, "bytes": 1,
}  # fmt: skip
NUMPY_DTYPE: dict[str, np.dtype[np.generic]] = {
    "bool": np.dtype("?"), "i8": np.dtype("<i1"), "i16": np.dtype("<i2"), "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"), "u8": np.dtype("<u1"), "u16": np.dtype("<u2"), "u32": np.dtype("<u4"),
    "u64": np.dtype("<u8"), "f16": np.dtype("<f2"), "f32": np.dtype("<f4"), "f64": np.dtype("<f8"),
}  # fmt: skip
_WIRE_DTYPE = {dtype: name for name, dtype in NUMPY_DTYPE.items()}
STRING_DTYPES = frozenset({"utf8", "bytes"})


class Tensor(msgspec.Struct, eq=False):
    """One tensor whose first dimension counts items.

    `shape` is as on the wire: `(n, *dims)` dense, `(n, -1, *dims)` ragged, `(n,)` for strings. `data` holds the
    elements, row-major and little-endian. `offsets` (`n + 1` ints from 0, in rows) is there for ragged and strings only.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Buffer
    offsets: list[int] | None = None

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {self.shape}, {len(self.data)} bytes)"

    @property
    def items(self) -> int:
        """Number of items: the first dimension."""
        return self.shape[0]

    @property
    def signature(self) -> tuple[str, tuple[int, ...]]:
        """What two tensors must share to be concatenated: dtype and the dimensions after the first."""
        return self.dtype, self.shape[1:]

    @property
    def stride(self) -> int:
        """Bytes of one item when dense, of one row of an item when ragged, of one byte of a string."""
        dims = self.shape[1:] if self.offsets is None else self.shape[2:]
        return ITEMSIZE[self.dtype] * prod(dims)

    def lengths(self) -> list[int]:
        """Rows (ragged) or bytes (strings) of each item; 1 each when dense."""
        offsets = self.offsets
        if offsets is None:
            return [1] * self.shape[0]
        if len(offsets) == 2:
            return [offsets[1]]
        return list(map(sub, offsets[1:], offsets))

    def copy(self) -> Tensor:
        """The same items on bytes of their own."""
        return Tensor(self.dtype, self.shape, bytes(self.data), self.offsets)

    def slice(self, start: int, stop: int) -> Tensor:
        """Items `start` to `stop` as a view on the same bytes."""
        if start == 0 and stop == self.shape[0]:
            return self
        stride = self.stride
        shape = (stop - start, *self.shape[1:])
        view = memoryview(self.data)
        if self.offsets is None:
            return Tensor(self.dtype, shape, view[start * stride : stop * stride])
        base = self.offsets[start]
        offsets = [o - base for o in self.offsets[start : stop + 1]]
        return Tensor(self.dtype, shape, view[base * stride : (base + offsets[-1]) * stride], offsets)

    def split(self, sizes: Sequence[int]) -> list[Tensor]:
        """The items in consecutive parts of `sizes`, as views on the same bytes."""
        if len(sizes) == 1:
            return [self]
        if self.offsets is not None:
            ends = list(accumulate(sizes))
            return [self.slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        view, dtype, dims, stride = memoryview(self.data), self.dtype, self.shape[1:], self.stride
        parts = []
        at = 0
        for size in sizes:
            end = at + size * stride
            parts.append(Tensor(dtype, (size, *dims), view[at:end]))
            at = end
        return parts

    def frames(self) -> list[Buffer]:
        """The frames that carry this tensor: data, and offsets where it has them."""
        if self.offsets is None:
            return [self.data]
        return [self.data, array("i", self.offsets).tobytes()]

    def to_numpy(self) -> Array:
        """Dense items as an array of `shape` (read-only view); bf16 is widened to float32. Raises TypeError if not dense."""
        if self.offsets is not None:
            raise TypeError(f"{self!r} is not dense; use rows() or strings()")
        return _as_array(self.dtype, self.data).reshape(self.shape)

    def rows(self) -> list[Array]:
        """Each item of a dense or ragged tensor as its own array (read-only views)."""
        if self.offsets is None:
            return list(self.to_numpy())
        if self.dtype in STRING_DTYPES:
            raise TypeError(f"{self!r} holds strings; use strings()")
        flat = _as_array(self.dtype, self.data).reshape(-1, *self.shape[2:])
        return [flat[a:b] for a, b in zip(self.offsets, self.offsets[1:], strict=False)]

    def raw_strings(self) -> list[bytes]:
        """Each item of a `utf8` or `bytes` tensor as bytes."""
        if self.dtype not in STRING_DTYPES or self.offsets is None:
            raise TypeError(f"{self!r} holds no strings")
        data = bytes(self.data)
        return [data[a:b] for a, b in zip(self.offsets, self.offsets[1:], strict=False)]

    def strings(self) -> list[str]:
        """Each item of a `utf8` tensor as str; raises UnicodeDecodeError on bytes that are not UTF-8."""
        return [raw.decode() for raw in self.raw_strings()]

    @classmethod
    def from_numpy(cls, values: Array) -> Tensor:
        """A dense tensor from an array whose first dimension counts items; raises TypeError on other dtypes and shapes."""
        dtype = _WIRE_DTYPE.get(values.dtype.newbyteorder("<"))
        if dtype is None or not 1 <= values.ndim <= MAX_DIMENSIONS:
            raise TypeError(f"no wire form for an array of {values.dtype} and shape {values.shape}")
        return cls(dtype, values.shape, values.astype(NUMPY_DTYPE[dtype], copy=False).tobytes())

    @classmethod
    def from_rows(cls, rows: Sequence[Array | Sequence[int]], dtype: str = "i32") -> Tensor:
        """A ragged tensor from one array (or list of ints) per item.

        Raises TypeError unless all rows agree in every dimension after their first, and none of those is 0.
        """
        arrays = [np.asarray(row, dtype=NUMPY_DTYPE[dtype]) for row in rows]
        dims = arrays[0].shape[1:] if arrays else ()
        if (
            any(a.ndim == 0 or a.shape[1:] != dims for a in arrays)
            or 0 in dims
            or len(dims) > MAX_DIMENSIONS - 2
        ):
            raise TypeError("ragged rows must agree in every dimension after the first")
        offsets = [0, *accumulate(len(a) for a in arrays)]
        return cls(dtype, (len(arrays), -1, *dims), b"".join(a.tobytes() for a in arrays), offsets)

    @classmethod
    def from_strings(cls, values: Iterable[str | bytes], dtype: str = "utf8") -> Tensor:
        """A string tensor; raises UnicodeEncodeError on lone surrogates."""
        raw = [v.encode() if isinstance(v, str) else v for v in values]
        return cls(dtype, (len(raw),), b"".join(raw), [0, *accumulate(map(len, raw))])

    @classmethod
    def concat(cls, parts: Sequence[Tensor]) -> Tensor:
        """Items of all parts, in order; their signatures must be equal."""
        first = parts[0]
        if len(parts) == 1:
            return first
        shape = (sum(p.shape[0] for p in parts), *first.shape[1:])
        data = b"".join([p.data for p in parts])
        if first.offsets is None:
            return cls(first.dtype, shape, data)
        offsets = [0]
        for part in parts:
            base = offsets[-1]
            assert part.offsets is not None
            offsets += [base + o for o in part.offsets[1:]]
        return cls(first.dtype, shape, data, offsets)

    @classmethod
    def zeros(cls, signature: tuple[str, tuple[int, ...]], items: int) -> Tensor:
        """Zero rows (dense) or empty ones (ragged, strings) of a signature: the place of items that failed."""
        dtype, dims = signature
        if dtype in STRING_DTYPES or dims[:1] == (-1,):
            return cls(dtype, (items, *dims), b"", [0] * (items + 1))
        return cls(dtype, (items, *dims), bytes(items * prod(dims) * ITEMSIZE[dtype]))


def _as_array(dtype: str, data: Buffer) -> Array:
    if dtype == "bf16":
        wide: Array = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
        return wide
    return np.frombuffer(data, NUMPY_DTYPE[dtype])
