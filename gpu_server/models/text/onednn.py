"""Linear layers on a CPU by oneDNN: weights in its own layout, the activation in the same call, perhaps bfloat16 products.

Torch gives float32 linear layers to MKL, which on some CPUs reaches two thirds of what oneDNN does. The model stays
Transformers' own; only its linear modules, and the activations that read nothing but their outputs, are replaced, and put
back if that changes the hidden states.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import nn

from gpu_server.models.text.encoder import Encoder
from gpu_server.models.text.pooling import pool
from gpu_server.models.text.selfcheck import Probe, row_errors

log = logging.getLogger(__name__)

FLOAT32_ERROR_LIMIT = 1e-4
BFLOAT16_COSINE = 0.9999
TIMES = 4
"""How many texts of each length of the self-check judge the new layers: rounding moves some more than others."""
_LAYOUT_FOR_ROWS = 1024
_SMALLEST_STEP = 8


class Epilogue(NamedTuple):
    """An activation that oneDNN computes with the product, under its name for it."""

    name: str = "none"
    algorithm: str = ""


# By the names of torch's and Transformers' classes, which come and go between versions.
_EPILOGUES = {
    "GELUActivation": Epilogue("gelu", "none"),
    "GELUTanh": Epilogue("gelu", "tanh"),
    "NewGELUActivation": Epilogue("gelu", "tanh"),
    "FastGELUActivation": Epilogue("gelu", "tanh"),
    "SiLUActivation": Epilogue("swish"),
    "SiLU": Epilogue("swish"),
    "ReLU": Epilogue("relu"),
}


class Rows:
    """The last input of a model's linear layers in the form that they take: query, key and value share theirs."""

    def __init__(self) -> None:
        self._of: torch.Tensor | None = None
        self._rows = torch.empty(0)

    def of(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` as `[padded_rows(rows), features]` of `dtype`, with zeros below its own rows."""
        if self._of is not x:
            self._of, self._rows = x, _padded(x.reshape(-1, x.shape[-1]), dtype)
        return self._rows

    def clear(self) -> None:
        """Keep no tensor of a forward that is over."""
        self._of, self._rows = None, torch.empty(0)


class PackedLinear(nn.Module):
    """`nn.Linear` and what follows it, by oneDNN, on numbers of rows that `padded_rows` gives."""

    def __init__(self, linear: nn.Linear, epilogue: Epilogue, dtype: torch.dtype, rows: Rows) -> None:
        super().__init__()
        weight, bias = linear.weight.detach().to(dtype), linear.bias
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _LAYOUT_FOR_ROWS)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._dtype = dtype
        self._epilogue = epilogue
        self._rows = rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[…, in_features]` to float32 `[…, out_features]`; bfloat16 after an activation of bfloat16 products."""
        rows = self._rows.of(x, self._dtype)
        name, algorithm = self._epilogue
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self.weight, self.bias, name, [], algorithm
        )
        out = out[: x.numel() // self.in_features].view(*x.shape[:-1], self.out_features)
        # After an activation comes another product, which would only round it again.
        return out.float() if name == "none" else out


def padded_rows(rows: int) -> int:
    """The next of a ladder of sizes, eight to an octave.

    oneDNN compiles a kernel for each number of rows and keeps it: about 1 ms and 1 MB, which the ladder bounds.
    """
    step = max(_SMALLEST_STEP, 1 << max((rows - 1).bit_length() - 4, 0))
    return -(-rows // step) * step


def available() -> bool:
    """Whether this torch has oneDNN and the operators that take its weights."""
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products; without them they are slower than float32's."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


@torch.inference_mode()
def adopt(encoder: Encoder, probe: Probe, *, rounded: str = "") -> str:
    """Replace the linear layers of a float32 encoder on a CPU, as far as its hidden states of `probe` allow.

    rounded: the pooling whose vectors products in bfloat16 must leave nearly as they are, their sums and all between being
    float32; "" for none such. Returns the number type of the products, "" where nothing was replaced.
    """
    if encoder.device.type != "cpu" or encoder.dtype != torch.float32 or not available():
        return ""
    batch = encoder.pack(*probe)
    with _observed(encoder.model) as followers:
        want = encoder(batch)

    def near() -> bool:
        got, wanted = (pool(states, batch.layout.offsets, rounded) for states in (encoder(batch), want))
        return float(torch.cosine_similarity(got, wanted).min()) >= BFLOAT16_COSINE

    def equal() -> bool:
        return bool((row_errors(encoder(batch), want) <= FLOAT32_ERROR_LIMIT).all())

    if rounded and multiplies_bfloat16():
        if _replace(encoder.model, followers, torch.bfloat16, near):
            return "bfloat16"
        log.info("products stay float32: bfloat16 is not accurate enough")
    return "float32" if _replace(encoder.model, followers, torch.float32, equal) else ""


def _replace(
    model: nn.Module, followers: dict[nn.Module, nn.Module], dtype: torch.dtype, right: Callable[[], bool]
) -> bool:
    """Replace every linear layer, and the activations that follow one; put all back unless `right` then."""
    rows = Rows()
    new: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if type(module) is nn.Linear:
            after = followers.get(module)
            epilogue = Epilogue() if after is None else _EPILOGUES[type(after).__name__]
            new[module] = PackedLinear(module, epilogue, dtype, rows)
            if after is not None:
                new[after] = nn.Identity()
    _exchange(model, new)
    forget = model.register_forward_hook(lambda *_: rows.clear())
    # Some models, Mamba's among them, take the weights out of their layers and use them otherwise.
    with suppress(RuntimeError, TypeError, ValueError, AttributeError):
        if new and right():
            return True
    forget.remove()
    _exchange(model, {made: old for old, made in new.items()})
    return False


def _exchange(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in new:
                setattr(parent, name, new[child])


@contextmanager
def _observed(model: nn.Module) -> Iterator[dict[nn.Module, nn.Module]]:
    """Which activation follows which linear layer: it reads that layer's output as it is, each time, and no other."""
    followers: dict[nn.Module, nn.Module] = {}
    makers: dict[nn.Module, set[nn.Module | None]] = {}
    made: dict[int, tuple[torch.Tensor, nn.Module]] = {}

    def after_linear(module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        made[id(out)] = out, module

    def before_activation(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        makers.setdefault(module, set()).add(made.get(id(args[0]), (args[0], None))[1])

    hooks = [m.register_forward_hook(after_linear) for m in model.modules() if type(m) is nn.Linear]
    hooks += [
        m.register_forward_pre_hook(before_activation)
        for m in model.modules()
        if type(m).__name__ in _EPILOGUES
    ]
    try:
        yield followers
    finally:
        for hook in hooks:
            hook.remove()
    followers.update({maker: act for act, (maker, *more) in makers.items() if maker is not None and not more})


def _padded(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    count, features = rows.shape
    size = padded_rows(count)
    if size == count and rows.dtype == dtype:
        return rows.contiguous()
    padded = rows.new_empty(size, features, dtype=dtype)
    padded[:count] = rows
    padded[count:] = 0
    return padded
