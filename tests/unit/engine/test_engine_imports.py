"""What a start imports, and that it does so without looking for garbage."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from gpu_server.engine import imports

UNUSED = ("scipy", "sklearn", "torch.nn.attention.varlen")
TEXT_MODELS = f"""
import sys
from gpu_server.engine import imports
imports.text_models()
assert "gpu_server.models.text.choice" in sys.modules
assert not [name for name in {UNUSED} if name in sys.modules]
from transformers import utils
assert utils.is_scipy_available()
"""


@pytest.fixture
def frozen() -> Iterator[int]:
    """How many objects were frozen before; what this test freezes is not."""
    assert gc.isenabled()
    yield gc.get_freeze_count()
    gc.unfreeze()


def test_nothing_is_collected_during_imports_nor_looked_at_afterwards(frozen: int) -> None:
    with imports.uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_collecting_goes_on_after_an_import_that_fails(frozen: int) -> None:
    with pytest.raises(ImportError), imports.uncollected():
        raise ImportError("no such module")
    assert gc.isenabled()


@pytest.mark.skipif(find_spec("scipy") is None, reason="SciPy is not there to be left out")
def test_text_models_are_imported_without_what_they_do_not_use() -> None:
    done = subprocess.run([sys.executable, "-c", TEXT_MODELS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
