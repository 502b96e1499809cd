"""Which torch is installed, what it was built for, and what it sees."""

from __future__ import annotations

import json
import warnings
from typing import Any


def main() -> None:
    """Answer {} without torch; `reason` says why CUDA cannot be used."""
    try:
        import torch
    except ImportError as error:
        print(json.dumps({"error": str(error)}))  # noqa: T201
        return
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda or "",
        "reason": "",
        "devices": [],
    }
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        facts["reason"] = "; ".join(str(warning.message).partition("\n")[0] for warning in said)
    else:
        facts["devices"] = [
            {
                "name": torch.cuda.get_device_name(number),
                "capability": list(torch.cuda.get_device_capability(number)),
            }
            for number in range(count)
        ]
        facts["built_for"] = torch.cuda.get_arch_list()
    print(json.dumps(facts))  # noqa: T201


if __name__ == "__main__":
    main()
