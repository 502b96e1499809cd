"""Callers that never stop asking, over the client and over HTTP, until they are told to."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
from collections.abc import Callable

from chaos_requests import Ask, Judge, random_ask
from running_gunicorn import UnixConnection

from gpu_server.client import Client
from gpu_server.errors import RemoteError

MODEL = "Chaos"
PAUSE_S = 0.01


class Callers:
    """Threads that ask and have their answers judged. Use as a context manager."""

    def __init__(
        self, judge: Judge, endpoint: str, http_path: str, seed: int, *, direct: int, web: int
    ) -> None:
        self._judge = judge
        self._http_path = http_path
        self._stop = threading.Event()
        self._clients = [Client(endpoint, timeout_s=5) for _ in range(2)]
        work: list[Callable[[Ask], None]] = [self._direct(self._clients[n % 2]) for n in range(direct)]
        work += [self._over_http] * web
        self._threads = [
            threading.Thread(target=self._run, args=(ask, random.Random(f"{seed}/{n}")))
            for n, ask in enumerate(work)
        ]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let every caller finish what it asks; fails on one that hangs."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        hung = sum(thread.is_alive() for thread in self._threads)
        for client in self._clients:
            client.close()
        assert not hung, f"{hung} callers hang"

    def _run(self, send: Callable[[Ask], None], dice: random.Random) -> None:
        while not self._stop.wait(dice.expovariate(1 / PAUSE_S)):
            send(random_ask(dice))

    def _direct(self, client: Client) -> Callable[[Ask], None]:
        def send(ask: Ask) -> None:
            begun = self._judge.begin()
            options = {"timeout_s": ask.timeout_s, "priority": ask.priority}
            try:
                reply = client.infer_request(MODEL, {"ids": ask.rows}, **options)
            except RemoteError as error:
                self._judge.refused(ask, begun, error.code)
                self._back_off(error.code)
                return
            outputs = {name: reply.outputs[name].to_numpy().tolist() for name in ("y", "v")}
            errors = {error.item: error.code for error in reply.header.item_errors}
            self._judge.answered(ask, begun, outputs["y"], outputs["v"], errors)

        return send

    def _over_http(self, ask: Ask) -> None:
        body = {
            "inputs": {"ids": ask.rows},
            "timeout_ms": int(ask.timeout_s * 1000),
            "priority": ask.priority,
        }
        headers = {"content-type": "application/json", "expect": "100-continue"}
        begun, taken_up = self._judge.begin(), False
        connection = UnixConnection(self._http_path)
        try:
            connection.request("POST", f"/v1/models/{MODEL}/infer", json.dumps(body), headers)
            # Gunicorn says "100 Continue" when a worker takes the request up: before that, after hang-ups, there may be none
            # for as long as new ones take to start, and nobody who could keep a deadline. The connection's limit bounds it.
            connection.sock.recv(1, socket.MSG_PEEK)
            begun, taken_up = self._judge.accepted(begun), True
            answer = connection.getresponse()
            got = json.loads(answer.read())
        except (OSError, http.client.HTTPException):
            # A worker was killed with this request in its hands, or there was none within the connection's limit.
            begun = begun if taken_up else self._judge.accepted(begun)
            self._judge.refused(ask, begun, "connection")
            self._stop.wait(0.1)
            return
        finally:
            connection.close()
        if answer.status == 200:
            errors = {error["item"]: error["code"] for error in got.get("item_errors", ())}
            self._judge.answered(ask, begun, got["outputs"]["y"], got["outputs"]["v"], errors)
        else:
            code = got["error"]["code"] if isinstance(got["error"], dict) else got.get("code", str(got))
            self._judge.refused(ask, begun, code)
            self._back_off(code)

    def _back_off(self, code: str) -> None:
        self._stop.wait(0.05 if code in ("unavailable", "model_loading", "shutting_down") else 0)
