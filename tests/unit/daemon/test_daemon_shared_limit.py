"""A limit that senders share: what one gets alone, what the next gets beside many, and that what they hold never drifts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_server.daemon.shared_limit import SHARES, SharedLimit


def fill(limit: SharedLimit, peer: bytes, priority: int = 1, amount: int = 1) -> int:
    """Let a sender have all that it gets; returns what it holds."""
    while not limit.refusal(peer, amount, priority):
        limit.take(peer, amount)
    return limit.held.get(peer, 0)


@pytest.mark.parametrize(("priority", "gets"), [(0, 700), (1, 600), (2, 400)])
def test_a_sender_that_is_alone_gets_most_and_never_all(priority: int, gets: int) -> None:
    assert fill(SharedLimit(800, "l"), b"alone", priority) == gets


def test_a_sender_that_holds_nothing_may_have_all_that_is_left() -> None:
    limit = SharedLimit(800, "l")
    assert limit.refusal(b"a", 801, 2)
    assert not limit.refusal(b"a", 800, 2)
    limit.take(b"b", 799)
    assert not limit.refusal(b"a", 1, 2)


@pytest.mark.parametrize("senders", [2, 7, 30])
@pytest.mark.parametrize("priority", [0, 1, 2])
def test_many_that_ask_for_all_they_get_hold_alike_and_leave_something(senders: int, priority: int) -> None:
    limit = SharedLimit(100_000, "l")
    peers = [b"%d" % number for number in range(senders)]
    # All at once: each asks in its turn for as long as one gets something.
    while any([not limit.refusal(peer, 1, priority) and limit.take(peer, 1) is None for peer in peers]):
        pass
    share = SHARES[priority]
    assert list(limit.held.values()) == pytest.approx(
        [100_000 * share / (1 + share * senders)] * senders, abs=2
    )
    left = 100_000 - limit.used
    assert left == pytest.approx(100_000 / (1 + share * senders), abs=share * senders)
    assert fill(limit, b"new") >= left * 3 // 4


def test_what_takes_nothing_of_a_limit_is_not_refused_for_it() -> None:
    limit = SharedLimit(100, "l")
    limit.take(b"a", 100)
    assert not limit.refusal(b"a", 0, 1)


def test_what_is_urgent_finds_room_beside_the_same_senders_bulk_work() -> None:
    limit = SharedLimit(800, "l")
    assert [fill(limit, b"worker", priority) for priority in (2, 1, 0)] == [400, 600, 700]


def test_a_refusal_names_the_limit_and_whose_share_is_used_up() -> None:
    limit = SharedLimit(100, "max_things = 100")
    limit.take(b"a", 76)
    assert limit.refusal(b"b", 25, 1) == "max_things = 100"
    assert limit.refusal(b"a", 1, 1) == (
        "max_things = 100, of which this sender holds 76, over 3 times the 23 that would be left"
    )


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 5), st.booleans())))
def test_what_is_held_is_what_was_taken_and_not_given(steps: list[tuple[bytes, int, bool]]) -> None:
    limit, taken = SharedLimit(10, "l"), list[tuple[bytes, int]]()
    for peer, amount, gives in steps:
        if gives and taken:
            limit.give(*taken.pop(amount % len(taken)))
        elif not gives:
            limit.take(peer, amount)
            taken.append((peer, amount))
        held: Counter[bytes] = Counter()
        for owner, size in taken:
            held[owner] += size
        assert +Counter(limit.held) == +held
        assert limit.used == held.total()
        assert set(limit.held) <= {owner for owner, _ in taken}
