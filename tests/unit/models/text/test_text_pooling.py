"""Pooling against sentence-transformers' Pooling over a padded batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling

from gpu_server.models.text.batch import pack
from gpu_server.models.text.checkpoint import Pooling
from gpu_server.models.text.pooling import pool

LENGTHS = np.array([5, 1, 12, 5])


@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equals_sentence_transformers(pooling: Pooling, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layout = pack(np.zeros(LENGTHS.sum(), np.int32), LENGTHS, torch.device("cpu")).layout
    flat = torch.randn(int(LENGTHS.sum()), 8).to(dtype)
    padded = torch.full((4 * 12, 8), 99.0)
    mask = torch.zeros(4 * 12, dtype=torch.int64)
    padded[layout.cells] = flat.float()
    mask[layout.cells] = 1
    features = {"token_embeddings": padded.view(4, 12, 8), "attention_mask": mask.view(4, 12)}
    want = TheirPooling(8, pooling)(features)["sentence_embedding"]
    got = pool(flat, layout.offsets, pooling)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
