"""A model of the user's own, in under 20 lines, behind any number of workers."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running_daemon import RunningDaemon
from running_gunicorn import CLASSES, RunningGunicorn

REQUESTS = 200


def test_concurrent_requests_get_their_own_answers(linear: RunningDaemon, models_folder: Path) -> None:
    """200 at once through four workers of one request each; all equal the module's own forward."""
    source = (models_folder / "linear.py").read_text()
    assert len(source.splitlines()) < 20
    torch.manual_seed(0)
    module = torch.nn.Linear(8, 4)
    draw = random.Random(1)
    rows = [[draw.uniform(-3, 3) for _ in range(8)] for _ in range(REQUESTS)]
    with torch.inference_mode():
        expected = module(torch.tensor(rows)).numpy()

    with RunningGunicorn(linear.endpoint, *CLASSES["sync"], workers=4) as web:

        def ask(nonce: int) -> tuple[int, Any]:
            body = {"inputs": {"x": [rows[nonce]], "nonce": [nonce]}}
            return web.ask("POST", "/v1/models/Linear/infer", body)

        web.ask_every_worker("GET", "/livez")
        with ThreadPoolExecutor(REQUESTS) as pool:
            answers = list(pool.map(ask, range(REQUESTS)))
    assert [status for status, _ in answers] == [200] * REQUESTS
    assert [body["outputs"]["nonce"] for _, body in answers] == [[nonce] for nonce in range(REQUESTS)]
    got = np.array([body["outputs"]["y"][0] for _, body in answers])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert max(body["timing"]["batch_items"] for _, body in answers) > 1
