"""Loads, warms up and runs models as an engine does."""

from __future__ import annotations

import json
import sys

import msgspec

from gpu_server.errors import GPUServerError
from gpu_server.wire.events import EngineSpec


def main() -> int:
    """Answer each model with what it became; 1 and one line on stderr where one fails."""
    spec = msgspec.json.decode(sys.stdin.read(), type=EngineSpec)
    from gpu_server.engine import blame, memory
    from gpu_server.engine import device as devices
    from gpu_server.engine.loader import load

    loaded = []
    try:
        device = devices.choose(spec.device)
        devices.prepare(device, spec.threads)
        devices.use_own_stream(device, [model.source for model in spec.models])
        memory.bound(device, spec.max_memory_mb)
        for model in spec.models:
            made = load(model, spec, device, lambda phase, done: None)
            facts = {
                "name": model.name,
                "kind": made.info.kind,
                "dtype": made.info.dtype,
                "runs": made.info.runs,
            }
            # Without an example only the load is proven.
            loaded.append(facts | {"example": bool(made.info.output_tensors)})
    except GPUServerError as error:
        return _fail(str(error))
    except Exception as error:  # noqa: BLE001 - the boundary to user code
        return _fail(blame.describe(error))
    print(json.dumps({"device": devices.describe(device), "models": loaded}))  # noqa: T201
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(message.partition("\n")[0] + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
