"""The imports that most of a start goes into, without what serving has no use for."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uncollected() -> Iterator[None]:
    """Import inside: modules stay, and looking for garbage among them again and again takes a fifth of the time.

    What is there afterwards is not looked at later either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def text_models() -> None:
    """Import what text models run on."""
    _losses()
    importlib.import_module("gpu_server.models.text.choice")


def _losses() -> None:
    """Transformers' losses, which its models import, without SciPy: only training a detector needs that."""
    utils: Any = importlib.import_module("transformers.utils")
    known = utils.is_scipy_available
    utils.is_scipy_available = lambda: False
    try:
        importlib.import_module("transformers.loss.loss_utils")
    finally:
        utils.is_scipy_available = known
