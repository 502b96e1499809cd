"""Attention over sequences laid end to end, registered with Transformers under `NAME`."""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from gpu_server.models.text.batch import Layout

NAME = "gpu_server_packed"

_FLASH_MAX_HEAD_DIM = 256


class CannotPack(RuntimeError):
    """The model asks for something that packed attention does not do; it must run padded."""


class Rule(NamedTuple):
    """What a token attends to: scores times `scale`, only tokens before it if `causal`, none further than `reach`."""

    scale: float
    causal: bool
    reach: int | None

    def window(self, length: int, device: torch.device) -> torch.Tensor | None:
        """Which of `length` tokens see which, bool `[length, length]`, or None where `reach` leaves nothing out."""
        if self.reach is None or self.reach + 1 >= length:
            return None
        places = torch.arange(length, device=device)
        back = places[:, None] - places
        return (back <= self.reach) & (back >= (0 if self.causal else -self.reach))


def register() -> None:
    """Make `NAME` known to Transformers.

    No mask function is registered with it on purpose: Transformers then builds no mask for this attention.
    """
    AttentionInterface.register(NAME, attend)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    bounds: tuple[torch.Tensor, torch.Tensor] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention function: query `[1, heads, tokens, dim]` to `[1, tokens, heads, dim]`, and no weights.

    `layout`, or inside a graph each token's key `bounds`, comes with the model call's keyword arguments. Raises CannotPack
    on what it does not honour.
    """
    if (layout is None and bounds is None) or attention_mask is not None:
        raise CannotPack("the model passes no layout, or its own mask, to its attention")
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise CannotPack(f"the model's attention needs {name}")
    rule = Rule(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        causal=bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        reach=_reach(module, sliding_window, layout),
    )
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if bounds is not None:
        return _tiled(q, k, v, bounds, rule)[None], None
    assert layout is not None
    kernel = _varlen if _flash_can(q, v, rule) else _per_length
    return kernel(q, k, v, layout, rule)[None], None


def _reach(module: torch.nn.Module, sliding_window: int | None, layout: Layout | None) -> int | None:
    """How many tokens away a token may look, on either side alike."""
    if sliding_window is None:
        return None
    config: Any = getattr(module, "config", None)
    # Transformers' windows count the token itself, but not where a config with is_causal = false turns them both ways.
    turned = not getattr(config, "is_causal", True) and sliding_window == getattr(
        config, "sliding_window", None
    )
    reach = sliding_window if turned else sliding_window - 1
    return None if layout is not None and reach + 1 >= layout.longest else reach


def _flash_can(q: torch.Tensor, v: torch.Tensor, rule: Rule) -> bool:
    if not q.is_cuda or q.dtype == torch.float32:
        return False
    dim = q.shape[-1]
    fits = dim == v.shape[-1] and dim % 8 == 0 and dim <= _FLASH_MAX_HEAD_DIM
    return fits and (rule.reach is None or "window_size" in _varlen_options())


@cache
def _varlen_options() -> frozenset[str]:
    """torch 2.10 has `is_causal` and no window; 2.11 has `window_size`; 2.12 has `enable_gqa` too."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _tiled(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: tuple[torch.Tensor, torch.Tensor], rule: Rule
) -> torch.Tensor:
    """Token-tiled attention, whose launch depends on the number of tokens alone."""
    from gpu_server.models.text.kernel import NO_REACH, tiled_attention

    if q.shape[-1] != v.shape[-1]:
        raise CannotPack("values are of another size than keys")
    reach = NO_REACH if rule.reach is None else rule.reach
    out: torch.Tensor = tiled_attention(q, k, v, *bounds, rule.scale, rule.causal, reach)
    return out


def _varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, rule: Rule) -> torch.Tensor:
    """Flash attention over `[tokens, heads, dim]`, all sequences in one kernel."""
    # Not before it is needed: it brings torch's compiler.
    from torch.nn.attention.varlen import varlen_attn

    known = _varlen_options()
    options: dict[str, Any] = {}
    if "window_size" in known:
        side = -1 if rule.reach is None else rule.reach
        options["window_size"] = (side, 0 if rule.causal else side)
    else:
        options["is_causal"] = rule.causal
    if "scale" in known:
        options["scale"] = rule.scale
    else:
        q = q * (rule.scale * math.sqrt(q.shape[-1]))
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and "enable_gqa" in known:
        options["enable_gqa"] = True
    elif groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    longest = layout.longest
    out = varlen_attn(q, k, v, layout.offsets, layout.offsets, longest, longest, **options)
    assert isinstance(out, torch.Tensor)
    return out


def _per_length(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, rule: Rule
) -> torch.Tensor:
    """Scaled-dot-product attention over `[tokens, heads, dim]`, sequences of equal length together; any device or dtype."""
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[-1])
    for length, rows in layout.by_length:
        window = rule.window(length, q.device)
        grouped = [x[rows].view(-1, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)]
        attended = scaled_dot_product_attention(
            grouped[0],
            grouped[1],
            grouped[2],
            attn_mask=window,
            is_causal=rule.causal and window is None,
            scale=rule.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out[rows] = attended.transpose(1, 2).flatten(0, 1)
    return out
