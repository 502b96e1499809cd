"""One input makes every row of its batch NaN: it is blamed alone, and what nobody waits for does not run again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from daemon_fakes import engine_reply
from service_world import World

from gpu_server.engine.runner import Runner
from gpu_server.models.base import Model

POISON = 666


class Contagious(Model):
    """Doubles numbers, unless one of the batch is from `POISON` on: then no row is finite. Notes its batches."""

    check_finite = True

    def __init__(self) -> None:
        self.ran: list[list[int]] = []

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x = batch["x"]
        self.ran.append(x.tolist())
        return x.double() * (torch.nan if x.max() >= POISON else 2)


class Bench:
    """A service before an engine that runs this model."""

    def __init__(self) -> None:
        self.world = World()
        self.model = Contagious()
        self._runner = Runner(self.model, torch.device("cpu"))

    def run(self) -> None:
        """The engine answers its oldest batch."""
        batch = self.world.link.pop()
        outputs, errors = self._runner.run(self.world.link.inputs[batch.id])
        named = outputs and {"y": outputs["output"]}
        self.world.service.batch_done(batch, engine_reply(item_errors=tuple(errors)), named)
        self.world.service.dispatch()

    def send(self, *batch: int) -> None:
        """Requests of one number each, by the number's id, that share a batch."""
        self.world.replies.clear()
        self.world.numbers(0, id=b"busy")
        for number in batch:
            self.world.numbers(number, id=b"%d" % number)
        if self.world.link.batches:
            self.run()

    def share(self, *batch: int) -> dict[bytes, Any]:
        """What they get."""
        self.send(*batch)
        while self.world.link.batches:
            self.run()
        return dict(self.world.outcomes())


def test_its_neighbours_are_answered_and_it_is_refused_when_it_has_failed_twice() -> None:
    bench = Bench()
    for _ in range(2):
        told = bench.share(1, 2, POISON, 3)
        assert told == {b"busy": [0], b"1": [2], b"2": [4], b"3": [6], b"666": "model_failed"}
    assert bench.model.ran.count([POISON]) == 2
    told = bench.share(1, 2, POISON, 3)
    assert told == {b"busy": [0], b"1": [2], b"2": [4], b"3": [6], b"666": "model_failed"}
    assert bench.model.ran[-2:] == [[0], [1, 2, 3]]
    bench.world.assert_nothing_is_kept()


def test_what_was_given_up_meanwhile_does_not_run_again_when_it_was_not_told_apart() -> None:
    bench = Bench()
    numbers = [*range(POISON, POISON + 8)]
    bench.send(*numbers)
    bench.world.ask(op="cancel", id=b"c", target=b"%d" % numbers[7])
    bench.run()
    untold = bench.model.ran[:]
    while bench.world.link.batches:
        bench.run()
    assert [numbers[5]] not in untold
    assert bench.model.ran[len(untold) :] == [[numbers[5]], [numbers[6]]]
    bench.world.assert_nothing_is_kept()
