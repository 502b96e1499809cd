"""Answers of a model that drops, adds, poisons and blanks rows: whatever it does, none reaches the wrong caller."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
import torch
from service_world import World

from gpu_server.engine.runner import Runner
from gpu_server.errors import ModelFailed, RemoteError
from gpu_server.models.base import Model
from gpu_server.wire.header import ErrorBody

BATCHES = 10_000


class Unreliable(Model):
    """Answers 2x + 1 as floating point numbers, most of the time."""

    check_finite = True

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.faults = 0

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        answer = batch["x"].double() * 2 + 1
        fault = self._dice.randrange(40)
        self.faults += fault < 6
        match fault:
            case 0:
                return answer[:-1]
            case 1:
                return torch.cat([answer, answer[:1]])
            case 2:
                return answer[:0]
            case 3:
                raise ValueError("bad luck")
            case 4:
                answer[self._dice.randrange(len(answer))] = float("nan")
            case 5:
                answer[self._dice.randrange(len(answer))] = float("inf")
        return answer


class Bench:
    """A service whose engine runs an unreliable model; every request is known by the numbers it asked for."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.world = World()
        self.model = Unreliable(self.dice)
        self.runner = Runner(self.model, torch.device("cpu"))
        self.asked: dict[bytes, list[int]] = {}
        self.ran = 0

    def ask(self) -> None:
        """Send a request of up to 12 numbers that no other asks for; a batch takes 8."""
        key = len(self.asked).to_bytes(4, "little")
        values = [1000 * len(self.asked) + n for n in range(self.dice.randrange(1, 13))]
        self.asked[key] = values
        self.world.numbers(*values, id=key)

    def run(self) -> None:
        """The engine answers its oldest batch."""
        inputs = self.world.link.inputs[next(iter(self.world.link.batches.values())).id]
        self.ran += 1
        try:
            outputs, errors = self.runner.run(inputs)
        except RemoteError as error:
            self.world.answer(error=ErrorBody(error.code, error.message, False, {}))
            return
        self.world.answer({e.item: e.message for e in errors}, outputs and {"y": outputs["output"]})


class Refusing(Model):
    """Says of the first number of a batch that it is wrong."""

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        raise ModelFailed(f"not {int(batch['x'][0])}")


def test_in_a_batch_that_fails_in_every_item_each_request_hears_of_its_own_and_each_item_is_known() -> None:
    world, runner = World(), Runner(Refusing(), torch.device("cpu"))
    for _ in range(2):
        world.numbers(0, id=b"busy")
        world.numbers(1, 2, id=b"1")
        world.numbers(3, id=b"2")
        world.answer()
        inputs = world.link.inputs[next(iter(world.link.batches.values())).id]
        outputs, errors = runner.run(inputs)
        world.answer({e.item: e.message for e in errors}, outputs)
    for number in (1, 2, 3):
        world.numbers(number, id=b"again")
    said = [header.error.message if header.error else "" for _, header, _ in world.replies]
    assert said[:6] == ["", "not 1", "not 3"] * 2
    assert [text.partition(";")[0] for text in said[6:]] == ["not 1", "not 2", "not 3"]
    world.assert_nothing_is_kept()


@pytest.mark.slow
def test_no_row_goes_astray_in_ten_thousand_batches() -> None:
    """Every item gets the number that is right for it or an error, every request exactly one reply."""
    bench = Bench(seed=4)
    while bench.ran < BATCHES:
        while bench.world.scheduler.items < 30:
            bench.ask()
        bench.run()
    while bench.world.link.batches:
        bench.run()
    assert bench.model.faults > BATCHES / 10
    replied = [header.id for _, header, _ in bench.world.replies]
    assert sorted(replied) == sorted(bench.asked)
    right = 0
    for _, header, outputs in bench.world.replies:
        values = bench.asked[header.id]
        if header.error:
            continue
        failed = {error.item for error in header.item_errors}
        rows = outputs["y"].to_numpy().tolist()
        assert rows == [0 if item in failed else 2 * value + 1 for item, value in enumerate(values)]
        right += len(values) - len(failed)
    assert right > 0.8 * sum(map(len, bench.asked.values()))
    bench.world.assert_nothing_is_kept()
