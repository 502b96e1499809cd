"""From a model's logits to the scores that people want: softmax, sigmoid or as they are. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.wire.documents import Activation

Scores = NDArray[np.float32]


def activate(logits: NDArray[Any], activation: Activation) -> Scores:
    """float32 scores of logits `[…, labels]`, worked out in float64; "" and "identity" leave them as they are."""
    wide = logits.astype(np.float64)
    if activation == "softmax":
        wide = softmax(wide)
    elif activation == "sigmoid":
        wide = sigmoid(wide)
    return wide.astype(np.float32)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares that add up to 1 along the last axis."""
    powers: NDArray[np.float64] = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    shares: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each number's own share of 1; no overflow however far from 0 it is."""
    small: NDArray[np.float64] = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, small) / (1 + small)
