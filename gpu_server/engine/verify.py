"""Whether a model that has just been loaded answers as it must: the last check before it is let in front of callers."""

from __future__ import annotations

from gpu_server.engine.isolation import Answer
from gpu_server.engine.outputs import not_finite
from gpu_server.errors import ModelFailed


def check(name: str, answer: Answer) -> None:
    """Refuse a warm-up answer with a failed item or a value that is no finite number; its rows are counted already.

    Raises ModelFailed, naming the model and the output.
    """
    outputs, errors = answer
    if errors:
        raise ModelFailed(f"model {name!r} fails on its own example: {errors[0].message}")
    for output, tensor in outputs.items():
        if tensor.dtype in ("f16", "f32", "f64") and not_finite(tensor):
            raise ModelFailed(
                f"model {name!r} answers its own example with NaN or infinity in output {output!r}"
            )
