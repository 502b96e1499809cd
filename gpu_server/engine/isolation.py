"""Splits a batch that failed until the items that fail are alone; the others get their answers."""

from __future__ import annotations

from collections.abc import Callable

from gpu_server.errors import Cancelled, ModelFailed, OutOfMemory, RemoteError
from gpu_server.wire import ItemError, Tensor, Tensors

Answer = tuple[Tensors, list[ItemError]]
"""Outputs, and the items that failed alone."""
Run = Callable[[Tensors], Answer | RemoteError]
CHANGING = "the model's outputs change in name, type or shape from batch to batch"


class Isolation:
    """One failed batch.

    run: runs a part of it. cost: what a part costs. fitting: after a batch that was too large for the device's memory, the
    cost that parts may have; 0 if memory was not what failed.
    One culprit among n items takes about 2·log2(n) more runs. The failing runs are bounded, so that a model that fails on
    everything does not hold the engine: items not told apart by then are
    `Cancelled`, with its message.
    """

    def __init__(self, run: Run, cost: Callable[[Tensors], int], release_memory: Callable[[], None]) -> None:
        self._run = run
        self._cost = cost
        self._release_memory = release_memory
        self._failures_left = 0
        self.fitting = 0

    def answer(self, inputs: Tensors, error: RemoteError) -> Answer:
        """What the items of a batch that failed with `error` get. Raises a RemoteError if no item is left."""
        self._failures_left = 2 * (_items(inputs).bit_length() + 1)
        outcome = self._halve(inputs, error)
        if isinstance(outcome, Cancelled):
            raise ModelFailed(CHANGING) if outcome.message == CHANGING else error
        if isinstance(outcome, RemoteError):
            raise outcome
        return outcome

    def _halve(self, inputs: Tensors, error: RemoteError) -> Answer | RemoteError:
        items = _items(inputs)
        if isinstance(error, OutOfMemory):
            self._release_memory()
            if items > 1:
                self.fitting = max(1, min(self.fitting or self._cost(inputs), self._cost(inputs)) // 2)
        return error if items == 1 else self._split(inputs, error)

    def _split(self, inputs: Tensors, error: RemoteError) -> Answer | RemoteError:
        items = _items(inputs)
        answers: list[tuple[int, int, Answer | RemoteError]] = []
        for low, high in ((0, items // 2), (items // 2, items)):
            part = {name: tensor.slice(low, high) for name, tensor in inputs.items()}
            answers.append((low, high, self._try(part, error)))
        return _merge(answers)

    def _try(self, inputs: Tensors, error: RemoteError) -> Answer | RemoteError:
        if self._failures_left <= 0:
            return Cancelled(error.message)
        if self.fitting and _items(inputs) > 1 and self._cost(inputs) > self.fitting:
            return self._split(inputs, error)
        outcome = self._run(inputs)
        if not isinstance(outcome, RemoteError):
            return outcome
        self._failures_left -= 1
        return self._halve(inputs, outcome)


def _merge(answers: list[tuple[int, int, Answer | RemoteError]]) -> Answer | RemoteError:
    good = [answer for _, _, answer in answers if not isinstance(answer, RemoteError)]
    if not good:
        failed = [answer for _, _, answer in answers if isinstance(answer, RemoteError)]
        # One error stands for all items of both: none may have that of another.
        return next((error for error in failed if isinstance(error, Cancelled)), failed[0])
    signatures = _signatures(good[0])
    if any(_signatures(answer) != signatures for answer in good):
        return Cancelled(CHANGING)
    columns: dict[str, list[Tensor]] = {name: [] for name in signatures}
    errors: list[ItemError] = []
    for low, high, answer in answers:
        if isinstance(answer, RemoteError):
            errors += [ItemError(item, answer.code, answer.message) for item in range(low, high)]
            for name, column in columns.items():
                column.append(Tensor.zeros(signatures[name], high - low))
        else:
            errors += [ItemError(low + e.item, e.code, e.message) for e in answer[1]]
            for name, column in columns.items():
                column.append(answer[0][name])
    return {name: Tensor.concat(column) for name, column in columns.items()}, errors


def _signatures(answer: Answer) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: tensor.signature for name, tensor in answer[0].items()}


def _items(inputs: Tensors) -> int:
    return next(iter(inputs.values())).items
