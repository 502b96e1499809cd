"""Which errors of torch mean that the device has no memory left, or is lost to this process."""

from __future__ import annotations

import torch

# What torch says of these is a plain RuntimeError, and the context stays good.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
# Refused before anything ran: the device has no such operation, or not for these numbers, and the context stays good.
_REFUSED = (
    "CUBLAS_STATUS_ARCH_MISMATCH",
    "CUBLAS_STATUS_INVALID_VALUE",
    "CUBLAS_STATUS_NOT_SUPPORTED",
    "invalid configuration argument",
    "no kernel image is available",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory was not enough for this batch."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(reason in str(error) for reason in _OUT_OF_MEMORY)


def is_lost(error: BaseException) -> bool:
    """Whether an error leaves the CUDA context unusable: every later call in this process would fail too."""
    if is_out_of_memory(error) or any(reason in str(error) for reason in _REFUSED):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and str(error).startswith("CUDA error")
    )


def pass_on(error: BaseException) -> None:
    """Raise an error again that is of the device, not of what was asked of it."""
    if is_out_of_memory(error) or is_lost(error):
        raise error
