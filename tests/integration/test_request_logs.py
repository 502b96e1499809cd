"""One trace id, from the HTTP header to the lines of daemon and engine."""

from __future__ import annotations

import re

from running_daemon import StartDaemon, until

from gpu_server.client import Client
from web import create_app
from web.settings import Settings

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_trace_id_is_in_every_process_s_log(daemon: StartDaemon, own_endpoint: str) -> None:
    running = daemon("served_models:Numbers", "--log-level", "debug").wait_ready()
    with Client(own_endpoint, timeout_s=10) as client:
        http = create_app(client, Settings(timeout_s=10)).test_client()
        headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-00"}
        answer = http.post("/v1/models/Numbers/infer", json={"inputs": {"x": [1]}}, headers=headers)
    assert answer.headers["x-request-id"] == TRACE, answer.get_json()
    until(lambda: running.log.count(TRACE) >= 3, "three lines")
    lines = [line for line in running.log.splitlines() if TRACE in line]
    events = {" ".join(line.split()[2:5]): line for line in lines}
    assert set(events) == {"daemon batch sent", "engine batch ran", "daemon request answered"}
    numbers = [
        re.findall(r" batch=(\d+)", events[name]) for name in ("daemon batch sent", "engine batch ran")
    ]
    assert numbers[0] == numbers[1] != []
    assert "queue_ms=" in events["daemon request answered"]
