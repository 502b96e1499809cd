"""Requests and batches as data: what waits, what a batch is given, how answers come together."""

from __future__ import annotations

import numpy as np
import pytest
from daemon_fakes import make_request

from gpu_server.daemon.request import Batch, Request
from gpu_server.errors import OutOfMemory
from gpu_server.wire import Tensor, Timing


def column(*values: float) -> dict[str, Tensor]:
    return {"y": Tensor.from_numpy(np.array(values, np.float32))}


def batch_of(*slices: tuple[Request, int, int]) -> Batch:
    batch = Batch(1, "m", {}, 0.0)
    batch.slices += slices
    batch.items = sum(stop - start for _, start, stop in slices)
    return batch


def test_a_request_knows_its_cost_and_size() -> None:
    request = make_request(3, 1, 5)
    assert (request.items, request.cost, request.cumulative, request.size) == (3, 9, [0, 3, 4, 9], 3)
    assert (request.waiting_items(), request.waiting_cost()) == (3, 9)
    assert make_request(7).cumulative == [0, 7]


def test_outputs_come_together_in_the_order_of_items() -> None:
    request = make_request(1, 1, 1, 1)
    assert not request.take(3, column(3), 1)
    assert not request.take(0, column(0), 1)
    assert request.take(1, column(1, 2), 2)
    assert request.outputs()["y"].to_numpy().tolist() == [0, 1, 2, 3]


def test_a_part_that_waits_for_the_others_keeps_no_batch() -> None:
    request, answer = make_request(1, 1), bytearray(400)
    request.take(0, {"y": Tensor("f32", (1,), memoryview(answer)[:4])}, 1)
    # It cannot be emptied while anything looks at it.
    answer.clear()


def test_ragged_outputs_come_together() -> None:
    request = make_request(1, 1, 1)
    request.take(2, {"y": Tensor.from_rows([[4, 5]])}, 1)
    request.take(0, {"y": Tensor.from_rows([[], [1]])}, 2)
    assert [row.tolist() for row in request.outputs()["y"].rows()] == [[], [1], [4, 5]]


@pytest.mark.parametrize(
    "second",
    [{"z": Tensor("f32", (1,), bytes(4))}, {"y": Tensor("f64", (1,), bytes(8))}, {"y": Tensor("f32", (1, 1), bytes(4))}],
)  # fmt: skip
def test_outputs_that_do_not_fit_together_are_named(second: dict[str, Tensor]) -> None:
    request = make_request(1, 1)
    request.take(0, column(1), 1)
    request.take(1, second, 1)
    with pytest.raises(ValueError, match="output 'y' differs"):
        request.outputs()


def test_timing_sums_compute_and_shows_the_largest_batch() -> None:
    request = make_request(1, 1, 1)
    small, large = batch_of((request, 0, 1)), batch_of((request, 1, 3))
    small.cost, large.cost = 9, 4
    request.queue_us = 70
    for batch in (small, large, small):
        request.ran_in(batch, 100)
    assert request.timing(1000.25) == Timing(70, 300, 250_000, 2, 4)


def test_a_batch_gives_the_engine_its_slices_in_order() -> None:
    first = make_request(1, 1, 1, inputs={"x": Tensor.from_rows([[1], [2, 2], [3]])})
    second = make_request(1, 1, inputs={"x": Tensor.from_rows([[4], [5, 5, 5]])})
    batch = batch_of((first, 1, 3), (second, 0, 2))
    assert batch.sizes() == [2, 2]
    assert [row.tolist() for row in batch.inputs()["x"].rows()] == [[2, 2], [3], [4], [5, 5, 5]]


def test_items_that_failed_in_a_batch_of_their_own_leave_blank_rows() -> None:
    request = make_request(1, 1, 1)
    assert not request.fail(1, 1, OutOfMemory("too large"))
    assert not request.take(2, column(3), 1)
    assert request.take(0, column(1), 1)
    assert request.outputs()["y"].to_numpy().ravel().tolist() == [1, 0, 3]
    assert [(e.item, e.code) for e in request.item_errors] == [(1, "out_of_memory")]
