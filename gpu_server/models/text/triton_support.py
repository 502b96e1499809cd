"""Whether Triton is there; CUDA builds of torch bring it."""

from __future__ import annotations

import importlib.util
from functools import cache


@cache
def has_triton() -> bool:
    """Whether kernels written in Triton can be used."""
    return importlib.util.find_spec("triton") is not None
