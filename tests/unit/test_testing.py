"""What `FakeServer` promises to the tests of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gpu_server.client import Client
from gpu_server.errors import InternalError, ModelLoading, ShuttingDown
from gpu_server.testing import FakeModel, FakeServer, Handler, echo_model
from gpu_server.wire import Tensors
from gpu_server.wire.documents import ModelInfo, State


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


@pytest.mark.parametrize("state", ["starting", "loading", "degraded", "draining", "stopping", "failed"])
@pytest.mark.parametrize("used", [False, True])
def test_a_state_is_played_to_clients_old_and_new(
    server: FakeServer, client: Client, state: State, used: bool
) -> None:
    if used:
        client.infer("echo", x=[1])
    server.state = state
    if state == "degraded":
        assert list(client.infer("echo", x=[1])["x"]) == [1]
        return
    with pytest.raises(ModelLoading if state in ("starting", "loading") else ShuttingDown):
        client.infer("echo", x=[1])
    listed = client.hello(refresh=True).models
    assert bool(listed) == (state not in ("starting", "loading"))
