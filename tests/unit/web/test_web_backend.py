"""The daemon as the handlers see it: one deadline for a request, however many handlers it takes."""

from __future__ import annotations

import pytest

from gpu_server.client import Client
from web import create_app
from web.backend import Backend
from web.call import Call, Shared
from web.settings import Settings


@pytest.mark.parametrize(("allowed_s", "most_s"), [(None, 5.0), (2.0, 2.0), (9.0, 5.0)])
def test_every_part_of_a_request_ends_by_its_deadline(
    client: Client, allowed_s: float | None, most_s: float
) -> None:
    shared: Shared = create_app(client, Settings(timeout_s=5)).extensions["gpu_server"]
    call = Call({}, shared)
    ends = {Backend(call, allowed_s).deadline.at for _ in range(2)}
    assert ends == {call.arrived + most_s}
