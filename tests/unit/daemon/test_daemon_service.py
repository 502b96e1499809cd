"""From message to reply over a fake engine: every accepted request gets exactly one outcome."""

from __future__ import annotations

import pytest
from service_world import World

from gpu_server.errors import ShuttingDown
from gpu_server.wire import VERSION, ErrorBody, RequestHeader, Tensor, encode_request


@pytest.fixture
def world() -> World:
    return World()


def test_an_answer_goes_to_its_caller_with_timings(world: World) -> None:
    world.clock.advance(0.0)
    world.numbers(1, 2, 3, id=b"a", peer=b"x")
    world.clock.advance(0.25)
    world.answer(compute_us=777)
    ((peer, header, outputs),) = world.replies
    assert (peer, header.id, header.model, header.version) == (b"x", b"a", "numbers", "v1")
    assert outputs["y"].to_numpy().tolist() == [2, 4, 6]
    assert header.timing
    assert (header.timing.compute_us, header.timing.total_us) == (777, 250_000)
    assert (header.timing.batch_items, header.timing.batch_tokens) == (3, 3)
    assert world.metrics.models["numbers"].success == 1
    world.assert_nothing_is_kept()


def test_requests_that_share_a_batch_get_their_own_rows(world: World) -> None:
    world.numbers(1, id=b"a", peer=b"x")
    world.numbers(2, 3, id=b"a", peer=b"y")
    world.numbers(4, id=b"b", peer=b"x")
    world.answer()
    assert [batch.items for batch in world.link.sent] == [1, 3]
    world.answer()
    assert [(peer, h.id, o["y"].to_numpy().tolist()) for peer, h, o in world.replies] == [
        (b"x", b"a", [2]),
        (b"y", b"a", [4, 6]),
        (b"x", b"b", [8]),
    ]


def test_a_request_over_several_batches_is_answered_once_and_in_order(world: World) -> None:
    world.numbers(*range(20))
    assert [batch.items for batch in world.link.sent] == [8, 8]
    second, first = world.link.batches.popitem(), world.link.batches.popitem()
    world.link.batches.update([second, first])
    world.answer()
    world.answer()
    world.answer()
    assert world.outcomes() == [(b"1", [2 * n for n in range(20)])]
    world.assert_nothing_is_kept()


def test_full_batches_are_bulk_work_also_where_items_bound_them(world: World) -> None:
    for number in range(6):
        world.numbers(*range(8), id=b"%d" % number, peer=b"bulk")
    world.numbers(1, peer=b"single")
    world.answer()
    assert [batch.slices[0][0].peer for batch in world.link.sent] == [b"bulk", b"bulk", b"single"]


def test_no_more_batches_than_allowed_are_with_the_engine(world: World) -> None:
    for number in range(4):
        world.numbers(*range(8), id=b"%d" % number)
    assert len(world.link.sent) == 2
    world.answer()
    assert len(world.link.sent) == 3


def test_items_fail_alone_and_are_numbered_in_their_own_request(world: World) -> None:
    world.numbers(0, id=b"first")
    world.numbers(1, 2, id=b"a")
    world.numbers(3, 4, 5, id=b"b")
    world.answer()
    world.answer(item_errors={1: "bad two", 3: "bad four"})
    (_, _, _), (_, a, _), (_, b, _) = world.replies
    assert [(e.item, e.message) for e in a.item_errors] == [(1, "bad two")]
    assert [(e.item, e.message) for e in b.item_errors] == [(1, "bad four")]


def test_a_request_whose_items_all_fail_is_an_error(world: World) -> None:
    world.numbers(0, id=b"first")
    world.numbers(1, 2, id=b"a")
    world.numbers(3, id=b"b")
    world.answer()
    world.answer(item_errors={0: "x", 1: "y"})
    assert world.outcomes() == [(b"first", [0]), (b"a", "model_failed"), (b"b", [6])]


def test_an_error_of_the_whole_batch_reaches_every_caller(world: World) -> None:
    world.numbers(0, id=b"first")
    world.answer()
    world.numbers(1, id=b"a")
    world.answer(error=ErrorBody("out_of_memory", "too big", False))
    assert world.outcomes()[1:] == [(b"a", "out_of_memory")]
    world.assert_nothing_is_kept()


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_wrong_number_of_rows_fails_and_never_shifts_answers(world: World, rows: int) -> None:
    world.numbers(0, 1, id=b"a")
    world.answer(outputs={"y": Tensor("f32", (rows,), bytes(4 * rows))})
    assert world.outcomes() == [(b"a", "model_failed")]
    world.assert_nothing_is_kept()


def test_outputs_that_change_type_between_batches_fail(world: World) -> None:
    world.numbers(*range(16))
    world.answer(outputs={"y": Tensor("f32", (8,), bytes(32))})
    world.answer(outputs={"y": Tensor("f64", (8,), bytes(64))})
    assert world.outcomes() == [(b"1", "model_failed")]
    world.assert_nothing_is_kept()


def test_an_answer_that_gathers_over_batches_is_bounded_and_one_batch_is_not(world: World) -> None:
    rows = {"y": Tensor.zeros(("f32", (40,)), 8)}
    world.numbers(*range(8), id=b"a")
    world.answer(outputs=rows)
    assert world.replies.pop()[2]["y"].data == rows["y"].data
    world.numbers(*range(17), id=b"b")
    world.answer(outputs=rows)
    world.answer(outputs=rows)
    ((_, header, outputs),) = world.replies
    assert header.error
    assert (header.error.code, header.error.details, outputs) == (
        "too_large",
        {"limit": "max_peer_bytes"},
        {},
    )
    assert "max_peer_bytes = 1000;" in header.error.message
    world.assert_nothing_is_kept()


def test_a_cancelled_request_is_answered_and_never_runs(world: World) -> None:
    world.numbers(1, id=b"runs")
    world.numbers(2, id=b"waits")
    world.ask(op="cancel", id=b"c", target=b"waits")
    assert [header.id for _, header, _ in world.replies] == [b"waits", b"c"]
    assert world.replies[0][1].error
    assert not world.replies[1][1].error
    world.answer()
    assert [batch.items for batch in world.link.sent] == [1]
    world.assert_nothing_is_kept()


def test_a_cancel_after_dispatch_drops_the_result(world: World) -> None:
    world.numbers(1, id=b"a")
    world.ask(op="cancel", id=b"c", target=b"a")
    world.answer()
    assert [header.id for _, header, _ in world.replies] == [b"a", b"c"]
    assert world.metrics.dropped["late_result"] == 1


def test_a_cancel_reaches_only_requests_of_its_own_connection(world: World) -> None:
    world.numbers(1, id=b"a", peer=b"x")
    world.ask(op="cancel", id=b"c", target=b"a", peer=b"y")
    world.answer()
    assert world.outcomes()[1:] == [(b"a", [2])]
    world.ask(op="cancel", id=b"c")
    assert world.replies[-1][1].error


def test_an_id_is_refused_while_it_is_outstanding_and_free_afterwards(world: World) -> None:
    world.numbers(1)
    world.numbers(2)
    world.numbers(3, peer=b"other")
    assert world.outcomes() == [(b"1", "invalid_request")]
    world.answer()
    world.answer()
    world.numbers(4)
    world.answer()
    assert world.outcomes()[1:] == [(b"1", [2]), (b"1", [6]), (b"1", [8])]


def test_a_lost_connection_frees_its_queue(world: World) -> None:
    world.numbers(1, id=b"a", peer=b"gone")
    world.numbers(2, id=b"b", peer=b"gone")
    world.text("hi", id=b"c", peer=b"gone")
    world.numbers(3, id=b"d", peer=b"here")
    world.service.peer_gone(b"gone")
    world.pool.turn()
    world.answer()
    world.answer()
    assert world.outcomes() == [(b"d", [6])]
    assert [batch.items for batch in world.link.sent] == [1, 1]
    world.assert_nothing_is_kept()


def test_deadlines_count_from_receipt(world: World) -> None:
    world.numbers(1, id=b"runs")
    world.numbers(2, id=b"short", deadline_ms=100)
    world.numbers(3, id=b"default")
    assert world.service.next_deadline() == pytest.approx(world.clock.now + 0.1)
    world.clock.advance(0.099)
    world.service.expire()
    assert world.replies == []
    world.clock.advance(0.001)
    world.service.expire()
    assert world.outcomes() == [(b"short", "deadline_exceeded")]
    world.clock.advance(30)
    world.service.expire()
    world.answer()
    assert sorted(world.outcomes()[1:]) == [(b"default", "deadline_exceeded"), (b"runs", "deadline_exceeded")]
    assert [batch.items for batch in world.link.sent] == [1]
    world.assert_nothing_is_kept()


def test_a_lost_engine_gives_its_batches_to_the_next_one(world: World) -> None:
    world.numbers(*range(8), id=b"a")
    world.numbers(*range(8), id=b"b")
    world.lose_engine()
    world.service.dispatch()
    assert world.replies == []
    world.new_engine()
    world.service.dispatch()
    world.answer()
    world.answer()
    assert world.outcomes() == [(i, [2 * n for n in range(8)]) for i in (b"a", b"b")]


def test_a_request_that_loses_two_engines_is_given_up(world: World) -> None:
    world.numbers(1, id=b"a")
    world.lose_engine()
    world.new_engine()
    world.service.dispatch()
    world.lose_engine()
    assert world.outcomes() == [(b"a", "engine_crashed")]
    world.assert_nothing_is_kept()


def test_one_crash_is_one_attempt_however_many_batches_a_request_is_in(world: World) -> None:
    world.numbers(*range(16))
    assert len(world.link.sent) == 2
    world.lose_engine()
    world.new_engine()
    world.service.dispatch()
    world.answer()
    world.answer()
    assert world.outcomes() == [(b"1", [2 * n for n in range(16)])]


def test_before_a_model_is_loaded_callers_are_told_the_phase() -> None:
    world = World(ready=False)
    world.service.phase = "warming up numbers"
    world.numbers(1)
    world.ask(op="tokenizer", id=b"2")
    assert world.outcomes() == [(b"1", "model_loading"), (b"2", "model_loading")]
    error = world.replies[0][1].error
    assert error
    assert error.details == {"phase": "warming up numbers"}
    assert error.retryable


def test_documents_are_answered_while_models_load() -> None:
    world = World(ready=False)
    for op in ("hello", "status", "metrics"):
        world.ask(op=op)
        assert world.replies[-1][2]["document"].strings() == [op]


def test_while_it_drains_it_finishes_and_takes_nothing_new(world: World) -> None:
    world.numbers(1, id=b"old")
    world.service.draining = True
    world.numbers(2, id=b"new")
    world.answer()
    assert world.outcomes() == [(b"new", "shutting_down"), (b"old", [2])]


def test_what_is_open_at_the_end_is_answered(world: World) -> None:
    world.numbers(1, id=b"a")
    world.numbers(2, id=b"b")
    world.text("hi", id=b"c")
    world.service.fail_all(ShuttingDown("over"))
    assert sorted(world.outcomes()) == [(i, "shutting_down") for i in (b"a", b"b", b"c")]
    world.assert_nothing_is_kept()


@pytest.mark.parametrize("op", ["load", "unload", "reload", "drain", "nope"])
def test_other_operations_are_not_offered(world: World, op: str) -> None:
    world.ask(op=op)
    assert world.outcomes() == [(b"1", "unsupported_operation")]


def test_malformed_messages_get_one_refusal_or_are_counted(world: World) -> None:
    good = encode_request(RequestHeader(v=VERSION, id=b"7", op="infer"))
    world.service.handle(b"p", [])
    world.service.handle(b"p", [b"not empty", b"x"])
    world.service.handle(b"p", [b""])
    assert (world.replies, world.metrics.dropped["unreadable"]) == ([], 3)
    world.service.handle(b"p", [b"", b"\xff"])
    world.service.handle(b"p", [*good, b"a frame too many"])
    assert world.outcomes() == [(b"", "invalid_request"), (b"7", "invalid_request")]
    assert world.metrics.failures["", "invalid_request"] == 2
