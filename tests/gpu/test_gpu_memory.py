"""The engine's own account of a GPU's memory, its bound, and what NVML says of the same GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpu_server.wire.monitoring import EngineMemory

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

MIB = 1 << 20


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The first GPU, without a bound afterwards."""
    first = torch.device("cuda", 0)
    torch.cuda.empty_cache()
    yield first
    torch.cuda.set_per_process_memory_fraction(1.0, first)
    torch.cuda.empty_cache()


def test_weights_warm_up_and_activations_are_told_apart(device: torch.device) -> None:
    from gpu_server.engine import memory

    stages = memory.Stages(device)
    weights = torch.empty(64 * MIB, dtype=torch.uint8, device=device)
    stages.loaded()
    torch.empty(128 * MIB, dtype=torch.uint8, device=device)
    taken = stages.warmed_up("m")
    assert taken.weights == weights.numel()
    assert taken.activations == 128 * MIB
    assert taken.warm_up >= 128 * MIB


def test_the_bound_holds_and_is_told(device: torch.device) -> None:
    from gpu_server.engine import memory

    memory.bound(device, 256)
    sent: list[EngineMemory] = []
    memory.Reporter(device, 256, [], sent.append).tick()
    assert sent[0].limit == 256 * MIB < sent[0].free <= sent[0].total
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(512 * MIB, dtype=torch.uint8, device=device)


def test_nvml_knows_the_gpu_by_the_engines_name_for_it(device: torch.device) -> None:
    pynvml = pytest.importorskip("pynvml")
    from gpu_server.engine import memory
    from gpu_server.engine.gpu import sample

    pynvml.nvmlInit()
    try:
        gpu = sample(pynvml, memory.uuid(device))
    finally:
        pynvml.nvmlShutdown()
    assert gpu.name == torch.cuda.get_device_name(device)
    assert 0 < gpu.memory_used <= gpu.memory_total
    assert gpu.power_w > 0
