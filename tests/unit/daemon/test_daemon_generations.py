"""Service and supervisor together, with weights that no version tells of: no answer has rows of two sets of them."""

from __future__ import annotations

from typing import cast

import pytest
from daemon_fakes import FakeLink, engine_reply
from hypothesis import given, settings
from hypothesis import strategies as st
from service_world import NUMBERS, TEXT
from service_world import World as ServiceWorld

from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.supervisor import Supervisor
from gpu_server.errors import Conflict, RemoteError
from gpu_server.testing import byte_tokenizer
from gpu_server.wire import ItemError, Tensor
from gpu_server.wire.events import Event, ModelSpec

LONG_S = 1e9


class Engine(FakeLink):
    """Multiplies by the weights that it found when it was started."""

    def __init__(self, weights: int) -> None:
        super().__init__(NUMBERS, TEXT)
        self.weights = weights
        self.tokenizers["text"] = byte_tokenizer()


class World(ServiceWorld):
    """A service under a supervisor; `weights` is what the files hold now."""

    def __init__(self) -> None:
        super().__init__(ready=False)
        self.weights = 2
        self.asked: dict[bytes, range] = {}
        self.supervisor = Supervisor(
            self._spawn,
            self.clock,
            (ModelSpec(name="numbers", source="module:Numbers"),),
            load_timeout_s=LONG_S,
            batch_timeout_s=LONG_S,
            on_ready=self.service.engine_ready,
            on_lost=self.service.engine_lost,
            on_hold=self.service.hold,
        )
        self.supervisor.start()
        self.load()

    def _spawn(self, models: tuple[ModelSpec, ...], device: str, gentle: bool) -> EngineLink:
        return cast(EngineLink, Engine(self.weights))

    def engines(self) -> list[Engine]:
        return cast(list[Engine], list(self.supervisor.links))

    def poll(self) -> None:
        self.supervisor.poll()
        self.service.dispatch()

    def load(self) -> None:
        """The engine that loads, if any, becomes ready."""
        for engine in self.engines():
            if engine.state == "loading":
                engine.state, engine.event = "ready", Event(kind="ready", device="cuda:0")
        self.poll()

    def request(self, items: int) -> None:
        number = len(self.asked)
        values = self.asked[b"%d" % number] = range(100 * number, 100 * number + items)
        self.numbers(*values, id=b"%d" % number, deadline_ms=86_400_000)

    def answer_of(self, engine: Engine, untold: int = 0) -> None:
        """An engine answers its oldest batch, but for its first `untold` rows, which it did not tell apart."""
        batch = engine.pop()
        errors = tuple(
            ItemError(row, "cancelled", "not told apart") for row in range(min(untold, batch.items))
        )
        outputs = {"y": Tensor.from_numpy(engine.inputs[batch.id]["x"].to_numpy() * engine.weights)}
        self.service.batch_done(batch, engine_reply(item_errors=errors), outputs)
        self.service.dispatch()

    def answer_all(self) -> None:
        for engine in self.engines():
            while engine.state == "ready" and engine.batches:
                self.answer_of(engine)

    def crash(self, *engines: Engine) -> None:
        """Engines die together; long enough after the last crash for it to count as the first."""
        self.clock.advance(400)
        for engine in engines:
            engine.state, engine.code = "dead", -9

    def change(self, drain_first: bool = False) -> None:
        """New weights are written, and the models are to be loaded anew; refused while another change is under way."""
        self.weights += 1

        def done(error: RemoteError | None) -> None: ...

        try:
            self.supervisor.change(self.supervisor.models, done, drain_first=drain_first)
        except Conflict:
            self.weights -= 1

    def settle(self) -> None:
        """Everything loads, and every batch is answered."""
        for _ in range(20):
            self.load()
            self.answer_all()

    def assert_nothing_is_mixed(self) -> None:
        self.assert_nothing_is_kept()
        assert len(self.replies) == len(self.asked)
        for (id_, got), (_, header, _) in zip(self.outcomes(), self.replies, strict=True):
            if not isinstance(got, str):
                failed = {error.item for error in header.item_errors}
                told = [
                    (x, y)
                    for item, (x, y) in enumerate(zip(self.asked[id_], got, strict=True))
                    if item not in failed
                ]
                assert any(all(y == x * w for x, y in told) for w in range(2, self.weights + 1)), (
                    got,
                    failed,
                )


@pytest.fixture
def world() -> World:
    return World()


def current(world: World) -> Engine:
    return cast(Engine, world.supervisor.link)


def retired(world: World) -> Engine:
    return cast(Engine, world.supervisor.retired)


def assert_answered_with(world: World, weights: int) -> None:
    world.settle()
    assert world.outcomes() == [(id_, [weights * x for x in asked]) for id_, asked in world.asked.items()]
    world.assert_nothing_is_mixed()


def test_what_a_replaced_engine_did_not_tell_apart_does_not_run_on_its_successor(world: World) -> None:
    world.request(12)
    world.request(4)
    world.answer_of(current(world))
    world.change()
    world.load()
    world.answer_of(retired(world), untold=8)
    world.settle()
    assert [outcome for _, outcome in world.outcomes()] == ["engine_crashed"] * 2
    world.assert_nothing_is_mixed()


def test_an_engine_that_ended_for_a_change_that_failed_is_of_the_past(world: World) -> None:
    world.request(20)
    world.change(drain_first=True)
    world.answer_all()
    world.poll()
    world.poll()
    world.crash(*world.engines())
    world.poll()
    world.change(drain_first=True)
    assert_answered_with(world, 4)


def test_an_engine_and_the_one_it_replaced_are_lost_together(world: World) -> None:
    world.request(16)
    world.answer_of(current(world))
    world.change()
    world.load()
    world.crash(current(world), retired(world))
    assert_answered_with(world, 3)


def test_an_engine_crashes_while_its_successor_loads(world: World) -> None:
    world.request(16)
    world.answer_of(current(world))
    world.change()
    world.crash(current(world))
    world.poll()
    assert_answered_with(world, 3)


def test_an_engine_crashes_after_a_change_that_failed(world: World) -> None:
    """The one that comes in its place reads what the change was for."""
    world.request(16)
    world.answer_of(current(world))
    world.change()
    world.crash(cast(Engine, world.supervisor.successor))
    world.poll()
    world.crash(current(world))
    world.poll()
    assert_answered_with(world, 3)


def test_a_crash_alone_keeps_the_rows_that_were_answered(world: World) -> None:
    world.request(20)
    world.answer_of(current(world))
    world.crash(current(world))
    world.poll()
    world.load()
    assert sum(batch.items for batch in current(world).batches.values()) + world.scheduler.items == 12
    assert_answered_with(world, 2)


happenings = st.one_of(
    st.tuples(st.just("request"), st.sampled_from([1, 3, 12, 20])),
    st.tuples(st.just("answer"), st.sampled_from([0, 0, 0, 3])),
    st.tuples(st.sampled_from(["late answer", "change", "crash", "poll", "load"]), st.integers(0, 3)),
)


@settings(max_examples=200)
@given(st.lists(happenings, max_size=30))
def test_whatever_happens_no_answer_is_mixed(steps: list[tuple[str, int]]) -> None:
    world = World()
    for what, number in steps:
        if what == "request" and world.scheduler.items + number <= 50:
            world.request(number)
        elif what in ("answer", "late answer"):
            engine = world.supervisor.retired if what == "late answer" else world.supervisor.link
            if engine is not None and engine.state == "ready" and engine.batches:
                world.answer_of(cast(Engine, engine), untold=number)
        elif what == "change":
            world.change(drain_first=number == 0)
        elif what == "crash":
            engines = world.engines()
            world.crash(*(engines if number == 3 else engines[number : number + 1]))
        elif what == "poll":
            world.poll()
        elif what == "load":
            world.load()
    world.settle()
    world.assert_nothing_is_mixed()
