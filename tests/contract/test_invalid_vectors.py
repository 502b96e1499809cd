"""Every message of proto/vectors/invalid.json is refused with the stated code and under the stated id."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpu_server.errors import ProtocolError
from gpu_server.wire import Limits, decode_reply, decode_request

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "proto" / "vectors" / "invalid.json").read_text("utf-8")
)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_is_refused(vector: dict[str, Any]) -> None:
    frames = [bytes.fromhex(frame) for frame in vector["frames"]]
    limits = Limits(max_items=vector["max_items"]) if "max_items" in vector else Limits()
    with pytest.raises(ProtocolError) as caught:
        decode_request(frames, limits) if vector["kind"] == "request" else decode_reply(frames)
    assert (caught.value.code, caught.value.request_id.hex()) == (vector["code"], vector["id"])
    assert str(caught.value)
