"""Pooling against sentence-transformers' Pooling over a padded batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling

from gpu_server.models.text.batch import pack
from gpu_server.models.text.checkpoint import POOLINGS
from gpu_server.models.text.pooling import normalized, pool, pool_and_normalize

LENGTHS = np.array([5, 1, 12, 5])


@pytest.mark.parametrize("pooling", [*POOLINGS, "mean+max", "lasttoken+cls+weightedmean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equals_sentence_transformers(pooling: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layout = pack(np.zeros(LENGTHS.sum(), np.int32), LENGTHS, torch.device("cpu")).layout
    flat = torch.randn(int(LENGTHS.sum()), 8).to(dtype)
    padded = torch.full((4 * 12, 8), 99.0)
    mask = torch.zeros(4 * 12, dtype=torch.int64)
    padded[layout.cells] = flat.float()
    mask[layout.cells] = 1
    features = {"token_embeddings": padded.view(4, 12, 8), "attention_mask": mask.view(4, 12)}
    want = TheirPooling(8, tuple(pooling.split("+")))(features)["sentence_embedding"]
    got = pool(flat, layout.offsets, pooling)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
@pytest.mark.parametrize("dim", [8, 384, 768, 1024, 4096])
def test_the_kernel_gives_the_same(pooling: str, dim: int) -> None:
    torch.manual_seed(0)
    lengths = [1, 3, 64, 65, 512, 2, 17]
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device="cuda")
    padding = ends[-1:].repeat(5)
    hidden = torch.randn(int(ends[-1]) + 30, dim, device="cuda", dtype=torch.float16)
    vectors, unit = pool_and_normalize(hidden, torch.cat([ends, padding]), pooling)
    want = pool(hidden.cpu(), ends.cpu(), pooling)
    torch.testing.assert_close(vectors[: len(lengths)].cpu(), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(unit[: len(lengths)].cpu(), normalized(want), atol=1e-4, rtol=1e-4)
    assert not vectors[len(lengths) :].any()
