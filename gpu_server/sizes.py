"""What fits one request, by the limits that the daemon announces."""

from __future__ import annotations

from gpu_server.errors import TooLarge
from gpu_server.wire import Limits, Tensors

OFFSET_BYTES = 4


def check_size(inputs: Tensors, limits: Limits) -> None:
    """Raise TooLarge, naming the limit, for what the server would drop or refuse."""
    total = 0
    for name, tensor in inputs.items():
        if tensor.items > limits.max_items:
            raise _too_large(f"{name}: {tensor.items} items", "max_items", limits.max_items)
        for size in map(len, tensor.frames()):
            total += size
            if size > limits.max_frame_bytes:
                raise _too_large(f"{name}: {size} bytes", "max_frame_bytes", limits.max_frame_bytes)
    if total > limits.max_request_bytes:
        raise _too_large(f"{total} bytes", "max_request_bytes", limits.max_request_bytes)
    for name in ("text", "text_pair"):
        text = inputs.get(name)
        if text is not None and text.dtype == "utf8" and text.items:
            longest = max(text.lengths())
            if longest > limits.max_text_bytes:
                raise _too_large(
                    f"{name}: {longest} bytes of one text", "max_text_bytes", limits.max_text_bytes
                )


def split_to_fit(inputs: Tensors, limits: Limits) -> list[Tensors]:
    """The items, ragged or strings, in consecutive parts that fit a request each; one that never fits is its own part."""
    tensors = list(inputs.values())
    room = min(limits.max_frame_bytes, limits.max_request_bytes) - OFFSET_BYTES * len(tensors)
    sizes: list[int] = []
    used = room
    for lengths in zip(*(tensor.lengths() for tensor in tensors), strict=True):
        cost = sum(n * t.stride + OFFSET_BYTES for n, t in zip(lengths, tensors, strict=True))
        if used + cost > room or sizes[-1] == limits.max_items:
            sizes.append(0)
            used = 0
        sizes[-1] += 1
        used += cost
    columns = [tensor.split(sizes) for tensor in tensors]
    return [dict(zip(inputs, part, strict=True)) for part in zip(*columns, strict=True)]


def _too_large(what: str, limit: str, value: int) -> TooLarge:
    return TooLarge(f"{what} exceed {limit} = {value}", {"limit": limit})
