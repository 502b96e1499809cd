"""The model API: subclass `Model` to put any torch module behind the server. Importable without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from gpu_server.errors import ConfigError
from gpu_server.wire.documents import ModelInfo
from gpu_server.wire.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Outputs = Any
"""A torch tensor or numpy array `[items, …]`, a list of one per item (ragged, all of one dtype), a `Ragged`, a list of str
or bytes, or a dict of up to 16 of those by names of up to 64 characters. What lies on the host is copied when `forward`
returns."""


class Ragged(NamedTuple):
    """Rows of all items end to end, a torch tensor or numpy array `[rows, …]`, and how many are each item's, on the host."""

    values: Any
    lengths: Sequence[int] | NDArray[np.int64]


class Model:
    """A model that the engine process holds; only `load` and `forward` must be written.

    Class attributes, all optional:
      inputs: what one item holds, `{"x": ("f32", (3, 224, 224))}`; −1 first in the shape means any length. Requests are
        checked against it before they are queued.
      cost: what one item adds to a batch: an int, or the name of the ragged input whose length counts (as tokens do).
      params: what a request may set, name to default; `forward(batch, **params)` gets them, and a batch shares them.
      padded: True if `forward` pads, so that a batch costs items × longest and not the sum.
      check_finite: True makes a row with NaN or infinity an error of its item, if it has them without the others of its
        batch too, and leaves its rows zero or empty.
      max_batch_tokens, max_batch_items: most a batch may cost and hold; None means the server's setting. After `load`
        they hold what is in force.
    """

    inputs: Mapping[str, tuple[str, tuple[int, ...]]] = MappingProxyType({})
    params: Mapping[str, Any] = MappingProxyType({})
    cost: int | str = 1
    padded: bool = False
    check_finite: bool = False
    max_batch_tokens: int | None = None
    max_batch_items: int | None = None

    def progress(self, done: float) -> None:
        """Say how far a long `load` or `warm_up` is, as a part of 1; the engine replaces this with its own."""

    def load(self, device: torch.device) -> None:
        """Load weights onto `device`; runs once, in the engine process. Raise GPUServerError for a clean message."""
        raise TypeError(f"{type(self).__name__} must define load(device)")

    def forward(self, batch: Any) -> Outputs:
        """Run one batch under `torch.inference_mode()` and return its outputs; row i answers item i."""
        raise TypeError(f"{type(self).__name__} must define forward(batch)")

    def collate(self, inputs: Mapping[str, Tensor], device: torch.device) -> Any:
        """Turn wire tensors into what `forward` takes.

        Default: a dict by input name; dense inputs become one tensor `[items, …]` on `device`, ragged ones a list of
        tensors on `device`, `utf8` a list of str, `bytes` a list of bytes.
        """
        return {name: _to_device(tensor, device) for name, tensor in inputs.items()}

    def split(self, outputs: Outputs, items: int) -> Mapping[str, Any]:
        """Name the outputs; default: a bare value becomes `{"output": value}`. Each value must have `items` rows."""
        return outputs if isinstance(outputs, Mapping) else {"output": outputs}

    def example(self) -> Mapping[str, Any] | None:
        """One item to warm up with, by input name (an array without the item dimension, a list of ids, a str or bytes).

        It is checked as a request is, and its answer must be finite: a model that fails on its own example is not served.
        """
        return None

    def warm_up(self, run: Any) -> None:
        """Run what should be warm before the server says ready; default: `run(inputs)` on the example, if there is one.

        inputs: by name, each a list or array with one entry per item, or a `Tensor`. Raises ConfigError if the example is
        no dict.
        """
        example = self.example()
        if example is None:
            return
        if not isinstance(example, Mapping):
            raise ConfigError(f"{type(self).__name__}.example() must return a dict of one item by input name")
        run({name: [value] for name, value in example.items()})

    def describe(self, info: ModelInfo) -> None:
        """Add what a client should know to `info`, after `load`."""

    def tokenizer_json(self) -> bytes | None:
        """The model's tokenizer.json, if it takes text."""
        return None


def _to_device(tensor: Tensor, device: torch.device) -> Any:
    import numpy as np
    import torch

    if tensor.dtype == "utf8":
        return tensor.strings()
    if tensor.dtype == "bytes":
        return tensor.raw_strings()
    if tensor.dtype == "bf16":
        # Numpy has no such type, and torch.frombuffer takes no empty buffer.
        bits = np.frombuffer(tensor.data, np.int16).copy()
        flat = torch.from_numpy(bits).view(torch.bfloat16).to(device)
        if tensor.offsets is None:
            return flat.view(tensor.shape)
        return list(torch.split(flat.view(-1, *tensor.shape[2:]), tensor.lengths()))
    if tensor.offsets is None:
        return torch.from_numpy(tensor.to_numpy().copy()).to(device)
    return [torch.from_numpy(row.copy()).to(device) for row in tensor.rows()]
