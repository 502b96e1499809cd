"""Runs batches on one model: collate, forward, copy back, and finding the item that breaks a batch."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch

from gpu_server.engine import device as devices
from gpu_server.engine import outputs as results
from gpu_server.errors import DeviceLost, ModelFailed, OutOfMemory, ProtocolError, RemoteError
from gpu_server.models.base import Model
from gpu_server.wire import ItemError, Tensor, Tensors, decode_reply, error_reply

log = logging.getLogger(__name__)

Answer = tuple[Tensors, list[ItemError]]


class Pending:
    """A batch that has been started; `wait` gives its answer."""

    def __init__(self, runner: Runner, inputs: Tensors, params: dict[str, Any]) -> None:
        self._runner = runner
        self._inputs = inputs
        self._params = params
        self._staged: results.Staged | None = None
        self._event: torch.cuda.Event | None = None
        self._error: RemoteError | None = None
        self.started = time.perf_counter()
        try:
            self._staged, self._event = runner.start(inputs, params)
        except Exception as error:  # noqa: BLE001 - the boundary to user code
            self._error = runner.translate(error)

    def ready(self) -> bool:
        """Whether `wait` would not wait."""
        return self._event is None or self._event.query()

    def wait(self) -> Answer:
        """The outputs and the items that failed alone; raises RemoteError if all did, DeviceLost if the device is."""
        if self._staged is not None:
            try:
                return self._runner.collect(self._staged, self._event, self._inputs)
            except Exception as error:  # noqa: BLE001 - CUDA reports a kernel's failure at the next wait
                self._error = self._runner.translate(error)
            self._staged = None
        assert self._error is not None
        return self._runner.isolate(self._inputs, self._params, self._error)


class Runner:
    """One loaded model on one device."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model = model
        self.device = device

    def enqueue(self, inputs: Tensors, params: dict[str, Any]) -> Pending:
        """Start a batch; on a GPU this returns before it has run."""
        return Pending(self, inputs, params)

    def run(self, inputs: Tensors, params: dict[str, Any] | None = None) -> Answer:
        """Run a batch and wait for it."""
        return self.enqueue(inputs, params or {}).wait()

    def start(
        self, inputs: Tensors, params: dict[str, Any]
    ) -> tuple[results.Staged, torch.cuda.Event | None]:
        """Collate, launch the forward and the copy back."""
        items = _items(inputs)
        with torch.inference_mode():
            batch = self.model.collate(inputs, self.device)
            staged = results.stage(self.model.split(self.model.forward(batch, **params), items))
        if self.device.type != "cuda":
            return staged, None
        event = torch.cuda.Event()
        event.record()
        return staged, event

    def collect(self, staged: results.Staged, event: torch.cuda.Event | None, inputs: Tensors) -> Answer:
        """Wait for a launched batch and put its outputs into wire form."""
        if event is not None:
            event.synchronize()
        return results.finish(staged, _items(inputs), self.model.check_finite)

    def translate(self, error: Exception) -> RemoteError:
        """What the caller is told of an error in a forward: no traceback, no paths. Raises DeviceLost for a lost device."""
        if devices.is_lost(error):
            raise DeviceLost(str(error).partition("\n")[0]) from None
        if isinstance(error, RemoteError):
            return _sendable(error)
        if devices.is_out_of_memory(error):
            return OutOfMemory("the device has not enough memory for this input")
        log.debug("forward failed", exc_info=error)
        return ModelFailed(f"the model raised {type(error).__name__}")

    def isolate(self, inputs: Tensors, params: dict[str, Any], error: RemoteError) -> Answer:
        """Halve a failed batch until the items that fail are alone; the others get their answers.

        One culprit among n items takes about 2·log2(n) more runs. The runs are bounded, so that a model that fails on
        everything does not hold the engine: items not told apart by then share the error. Raises it if no item is left.
        """
        runs = 4 * (_items(inputs).bit_length() + 1)
        return self._halve(inputs, params, error, itertools.count(runs, -1))

    def _halve(
        self, inputs: Tensors, params: dict[str, Any], error: RemoteError, runs: Iterator[int]
    ) -> Answer:
        items = _items(inputs)
        if isinstance(error, OutOfMemory):
            devices.release_memory(self.device)
        if items == 1:
            raise error
        answers: list[tuple[int, int, Answer | RemoteError]] = []
        for low, high in ((0, items // 2), (items // 2, items)):
            part = {name: tensor.slice(low, high) for name, tensor in inputs.items()}
            answers.append((low, high, self._try(part, params, error, runs)))
        return _merge(answers)

    def _try(
        self, inputs: Tensors, params: dict[str, Any], error: RemoteError, runs: Iterator[int]
    ) -> Answer | RemoteError:
        if next(runs) <= 0:
            return error
        try:
            try:
                staged, event = self.start(inputs, params)
                return self.collect(staged, event, inputs)
            except Exception as raised:  # noqa: BLE001 - the boundary to user code
                error = self.translate(raised)
            # Out of the except block: its traceback would keep the failed batch's tensors alive.
            return self._halve(inputs, params, error, runs)
        except RemoteError as failed:
            return failed


def _merge(answers: list[tuple[int, int, Answer | RemoteError]]) -> Answer:
    good = [answer for _, _, answer in answers if not isinstance(answer, RemoteError)]
    if not good:
        raise next(answer for _, _, answer in answers if isinstance(answer, RemoteError))
    signatures = _signatures(good[0])
    if any(_signatures(answer) != signatures for answer in good):
        raise ModelFailed("the model's outputs change in name, type or shape from batch to batch")
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


def _sendable(error: RemoteError) -> RemoteError:
    """The error itself, unless the model put something into it that has no wire form."""
    try:
        decode_reply(error_reply(b"", error.code, error.message, error.retryable, error.details))
    except (ProtocolError, TypeError, ValueError, OverflowError, RecursionError):
        return ModelFailed(f"the model raised {type(error).__name__} with contents that cannot be sent")
    return error


def _signatures(answer: Answer) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: tensor.signature for name, tensor in answer[0].items()}


def _items(inputs: Tensors) -> int:
    return next(iter(inputs.values())).items
