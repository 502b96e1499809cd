"""Whether Triton can be used, and how its kernels are launched; CUDA builds of torch bring it."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from subprocess import SubprocessError
from typing import Any

import torch

log = logging.getLogger(__name__)

# Up to here kernels set up early saved up to 6 % of a forward on an H200; at 16,384 tokens they cost 3 %.
_EARLY_TOKENS = 4096


@cache
def has_triton() -> bool:
    """Whether kernels written in Triton run here: it is installed, and finds the C compiler that it needs at run time."""
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    try:
        _run_one()
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, OSError, SubprocessError) as error:
        log.warning(
            "text models run without graphs, slower: Triton cannot build its kernels; install a C compiler (gcc), or set "
            "CC to one",
            extra={"reason": str(error).partition("\n")[0]},
        )
        return False
    return True


@cache
def _early_device(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def early(device: torch.device, tokens: int) -> dict[str, Any]:
    """Launch options by which a kernel is set up while the one before it still runs, and waits for its end.

    From Hopper on (programmatic dependent launch). EARLY tells the kernel to wait, and to let the next one in.
    """
    if tokens > _EARLY_TOKENS or not _early_device(device):
        return {"EARLY": False}
    return {"EARLY": True, "launch_pdl": True}


def _run_one() -> None:
    """Build a kernel and its launcher, and run it."""
    from gpu_server.models.text.norm_kernel import layer_norm

    row = torch.ones(1, 32, device="cuda")
    layer_norm(row, row[0], row[0], 1e-5)
