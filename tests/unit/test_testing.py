"""What `FakeServer` promises to the tests of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gpu_server.client import Client
from gpu_server.errors import InternalError
from gpu_server.testing import FakeModel, FakeServer, Handler, echo_model
from gpu_server.wire import Tensors
from gpu_server.wire.documents import ModelInfo


def broken(inputs: Tensors, params: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"y": inputs["absent"]}


def unfit(inputs: Tensors, params: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"y": object()}


@pytest.mark.parametrize(("handler", "raised"), [(broken, "KeyError: 'absent'"), (unfit, "TypeError: ")])
def test_a_handler_that_raises_is_answered_with_what_it_raised(handler: Handler, raised: str) -> None:
    model = FakeModel(ModelInfo(name="m", version="1"), handler)
    with FakeServer(model, echo_model()) as server, Client(server.endpoint, timeout_s=5) as client:
        with pytest.raises(InternalError, match=raised):
            client.infer("m", x=[1])
        assert list(client.infer("echo", x=[1])["x"]) == [1]
