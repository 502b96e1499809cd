"""Silent connections are ended when a chosen identity is free: those that were there before, once they had time to speak."""

from __future__ import annotations

import pytest
from daemon_fakes import Clock

from gpu_server.daemon.overlooked import SETTLE_S, Overlooked


class World:
    """What is overlooked, on a clock; `ended` are the descriptors of connections that were ended."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ended: list[int] = []
        self.overlooked = Overlooked(self.ended.append, self.clock)

    def after(self, seconds: float) -> list[int]:
        """What has been ended when so much time has passed."""
        self.clock.advance(seconds)
        self.overlooked.end_due()
        return self.ended


@pytest.fixture
def world() -> World:
    """Connections 1 to 3, of which 2 spoke and 3 has ended."""
    made = World()
    for descriptor in (1, 2, 3):
        made.overlooked.accepted(descriptor)
    made.overlooked.spoke(2)
    made.overlooked.ended(3)
    return made


def test_nothing_is_ended_while_no_identity_is_given_up(world: World) -> None:
    assert world.after(1e6) == []


def test_who_was_there_before_and_says_nothing_is_ended_once(world: World) -> None:
    world.overlooked.freed()
    assert world.after(1.9 * SETTLE_S) == []
    assert world.after(0.2 * SETTLE_S) == [1]
    world.overlooked.freed()
    assert world.after(3 * SETTLE_S) == [1]


@pytest.mark.parametrize(("later_s", "ended"), [(0.9 * SETTLE_S, [1, 4]), (1.1 * SETTLE_S, [1])])
def test_who_came_before_the_identity_was_surely_free_is_ended_too(
    world: World, later_s: float, ended: list[int]
) -> None:
    world.overlooked.freed()
    world.clock.advance(later_s)
    world.overlooked.accepted(4)
    assert world.after(3 * SETTLE_S) == ended


def test_who_speaks_in_time_stays(world: World) -> None:
    world.overlooked.freed()
    world.clock.advance(SETTLE_S)
    world.overlooked.spoke(1)
    assert world.after(3 * SETTLE_S) == []


def test_each_identity_has_its_own_time(world: World) -> None:
    world.overlooked.freed()
    world.clock.advance(1.5 * SETTLE_S)
    world.overlooked.accepted(4)
    world.overlooked.freed()
    assert world.after(SETTLE_S) == [1]
    assert world.after(SETTLE_S) == [1, 4]
