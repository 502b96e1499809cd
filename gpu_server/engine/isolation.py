"""Runs what failed of a batch again in halves until the items that fail are alone; the others get their answers."""

from __future__ import annotations

from collections.abc import Callable

from gpu_server.errors import Cancelled, ModelFailed, OutOfMemory, RemoteError
from gpu_server.wire import ItemError, Tensor, Tensors

Answer = tuple[Tensors, list[ItemError]]
"""Outputs, {} where no item has any; and the items that failed, by number, each with its own error."""
Run = Callable[[Tensors], Answer | RemoteError]
CHANGING = "the model's outputs change in name, type or shape from batch to batch"


class Isolation:
    """One batch that failed, or of which items did.

    run: runs a part of it. cost: what a part costs. fitting: after a batch that was too large for the device's memory, the
    cost that parts may have; 0 if memory was not what failed.
    One culprit among n items takes about 2·log2(n) more runs. The failing runs are bounded, so that a model that fails on
    everything does not hold the engine: items not told apart by then are `Cancelled`, with its message.
    """

    def __init__(self, run: Run, cost: Callable[[Tensors], int], release_memory: Callable[[], None]) -> None:
        self._run = run
        self._cost = cost
        self._release_memory = release_memory
        self._failures_left = 0
        self.fitting = 0

    def answer(self, inputs: Tensors, error: RemoteError) -> Answer:
        """What the items of a batch that failed with `error` get. Raises a RemoteError if none was told from the others."""
        self._failures_left = _allowed(inputs)
        outputs, errors = self._halve(inputs, error)
        if _items(inputs) > 1 and (outputs or any(e.code != Cancelled.code for e in errors)):
            return outputs, errors
        raise ModelFailed(CHANGING) if any(e.message == CHANGING for e in errors) else error

    def settle(self, inputs: Tensors, answer: Answer) -> Answer:
        """What the items of a batch get that ran with `answer`: those that failed beside others run again without them.

        A row may be a neighbour's fault: attention weighs what a token does not see by 0, and 0 times infinity is NaN.
        """
        self._failures_left = _allowed(inputs)
        return self._settle(inputs, answer)

    def _settle(self, inputs: Tensors, answer: Answer) -> Answer:
        outputs, errors = answer
        if not errors or _items(inputs) == 1:
            return answer
        middle = len(errors) // 2
        halves = [half for half in (errors[:middle], errors[middle:]) if half]
        rows, failed = _merge([(len(half), self._without_others(inputs, half)) for half in halves])
        if rows and _signatures(rows) != _signatures(outputs):
            # They cannot be in one answer with the rows that are there.
            told = {e.item: e for e in failed}
            failed = [told.get(n) or ItemError(n, Cancelled.code, e.message) for n, e in enumerate(errors)]
        still = {e.item for e in failed}
        found = {e.item: n for n, e in enumerate(errors) if n not in still}
        if found:
            outputs = {name: _filled(tensor, rows[name], found) for name, tensor in outputs.items()}
        return outputs, [ItemError(errors[e.item].item, e.code, e.message) for e in failed]

    def _without_others(self, inputs: Tensors, failed: list[ItemError]) -> Answer:
        part = {name: _picked(tensor, failed) for name, tensor in inputs.items()}
        return self._try(part, ModelFailed(failed[0].message))

    def _halve(self, inputs: Tensors, error: RemoteError) -> Answer:
        items = _items(inputs)
        if isinstance(error, OutOfMemory):
            self._release_memory()
            if items > 1:
                self.fitting = max(1, min(self.fitting or self._cost(inputs), self._cost(inputs)) // 2)
        return _failed(1, error.code, error.message) if items == 1 else self._split(inputs, error)

    def _split(self, inputs: Tensors, error: RemoteError) -> Answer:
        items = _items(inputs)
        parts: list[tuple[int, Answer]] = []
        for low, high in ((0, items // 2), (items // 2, items)):
            part = {name: tensor.slice(low, high) for name, tensor in inputs.items()}
            parts.append((high - low, self._try(part, error)))
        return _merge(parts)

    def _try(self, inputs: Tensors, error: RemoteError) -> Answer:
        if self._failures_left <= 0:
            return _failed(_items(inputs), Cancelled.code, error.message)
        if self.fitting and _items(inputs) > 1 and self._cost(inputs) > self.fitting:
            return self._split(inputs, error)
        outcome = self._run(inputs)
        if isinstance(outcome, RemoteError):
            self._failures_left -= 1
            return self._halve(inputs, outcome)
        self._failures_left -= bool(outcome[1])
        return self._settle(inputs, outcome)


def _merge(parts: list[tuple[int, Answer]]) -> Answer:
    """The answers of parts, each with its number of items, as that of the whole."""
    errors: dict[int, ItemError] = {}
    items = 0
    for size, (_, failed) in parts:
        errors |= {items + e.item: ItemError(items + e.item, e.code, e.message) for e in failed}
        items += size
    forms = [_signatures(outputs) for _, (outputs, _) in parts if outputs]
    if any(form != forms[0] for form in forms):
        return {}, [errors.get(item) or ItemError(item, Cancelled.code, CHANGING) for item in range(items)]
    columns = {
        name: [outputs[name] if outputs else Tensor.zeros(signature, size) for size, (outputs, _) in parts]
        for name, signature in (forms[0] if forms else {}).items()
    }
    return {name: Tensor.concat(column) for name, column in columns.items()}, list(errors.values())


def _picked(tensor: Tensor, errors: list[ItemError]) -> Tensor:
    return Tensor.concat([tensor.slice(error.item, error.item + 1) for error in errors])


def _filled(tensor: Tensor, rows: Tensor, found: dict[int, int]) -> Tensor:
    """An output with some of `rows` in the place of its own: `found` says at which item goes which, and ascends."""
    parts, at = [], 0
    for item, place in found.items():
        parts += [tensor.slice(at, item), rows.slice(place, place + 1)]
        at = item + 1
    return Tensor.concat([*parts, tensor.slice(at, tensor.items)])


def _failed(items: int, code: str, message: str) -> Answer:
    return {}, [ItemError(item, code, message) for item in range(items)]


def _signatures(outputs: Tensors) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: tensor.signature for name, tensor in outputs.items()}


def _allowed(inputs: Tensors) -> int:
    """How many runs may fail."""
    return 2 * (_items(inputs).bit_length() + 1)


def _items(inputs: Tensors) -> int:
    return next(iter(inputs.values())).items
