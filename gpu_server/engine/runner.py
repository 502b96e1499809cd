"""Runs batches on one model: collate, forward, copy back."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from gpu_server.engine import blame
from gpu_server.engine import device as devices
from gpu_server.engine import outputs as results
from gpu_server.engine.isolation import Answer, Isolation
from gpu_server.errors import DeviceLost, ModelFailed, OutOfMemory, ProtocolError, RemoteError
from gpu_server.models import device_errors
from gpu_server.models.base import Model
from gpu_server.wire import Tensors, decode_reply, error_reply

log = logging.getLogger(__name__)


class Pending:
    """A batch that has been started; `wait` gives its answer.

    fitting: after `wait`, what a batch may cost if this one was too large for the device's memory; else 0.
    raised: after `wait`, the last error in it that the model's own code raised; for the operator, never for callers.
    """

    def __init__(self, runner: Runner, inputs: Tensors, params: dict[str, Any]) -> None:
        self._runner = runner
        self._inputs = inputs
        self._params = params
        self._staged: results.Staged | None = None
        self._event: torch.cuda.Event | None = None
        self._error: RemoteError | None = None
        self.fitting = 0
        self.started = time.perf_counter()
        runner.raised = None
        try:
            self._staged, self._event = runner.start(inputs, params)
        except Exception as error:  # noqa: BLE001 - the boundary to user code
            self._error = runner.translate(error)
        self.raised: blame.Blame | None = runner.raised

    def ready(self) -> bool:
        """Whether `wait` would not wait."""
        try:
            return self._event is None or self._event.query()
        except RuntimeError:
            # A kernel failed; `wait` meets the same error and says what it means.
            return True

    def wait(self) -> Answer:
        """The outputs and the items that failed alone; raises RemoteError if all did, DeviceLost if the device is."""
        # Another batch may have been started since this one.
        self._runner.raised = self.raised
        try:
            return self._answer()
        finally:
            self.raised = self._runner.raised

    def _answer(self) -> Answer:
        outcome = self._outcome()
        if not isinstance(outcome, RemoteError) and not outcome[1]:
            return outcome
        isolation = self._runner.isolation(self._params)
        try:
            if isinstance(outcome, RemoteError):
                return isolation.answer(self._inputs, outcome)
            return isolation.settle(self._inputs, outcome)
        finally:
            self.fitting = isolation.fitting

    def _outcome(self) -> Answer | RemoteError:
        staged, self._staged = self._staged, None
        if staged is None:
            assert self._error is not None
            return self._error
        try:
            return self._runner.collect(staged, self._event, self._inputs)
        except Exception as error:  # noqa: BLE001 - CUDA reports a kernel's failure at the next wait
            return self._runner.translate(error)


class Runner:
    """One loaded model on one device.

    raised: the last error that the model's own code raised in the batch that was run last.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.raised: blame.Blame | None = None

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
        if device_errors.is_lost(error):
            raise DeviceLost(str(error).partition("\n")[0]) from None
        if isinstance(error, RemoteError):
            told = _sendable(error)
            if told is not error:
                self.raised = blame.of(error, type(self.model))
            return told.with_traceback(None)
        if device_errors.is_out_of_memory(error):
            return OutOfMemory("the device has not enough memory for this input")
        log.debug("forward failed", exc_info=error)
        self.raised = blame.of(error, type(self.model))
        return ModelFailed(f"the model raised {type(error).__name__}")

    def isolation(self, params: dict[str, Any]) -> Isolation:
        """Ready to find what made a batch with these parameters fail."""
        return Isolation(
            lambda part: self._try(part, params), self._cost, lambda: devices.release_memory(self.device)
        )

    def _try(self, inputs: Tensors, params: dict[str, Any]) -> Answer | RemoteError:
        try:
            return self.collect(*self.start(inputs, params), inputs)
        except Exception as raised:  # noqa: BLE001 - the boundary to user code
            # Only its translation leaves: the traceback would keep the failed batch's tensors alive.
            return self.translate(raised)

    def _cost(self, inputs: Tensors) -> int:
        """What these items add to a batch, as the daemon counts it."""
        cost, items = self.model.cost, _items(inputs)
        if isinstance(cost, int):
            return cost * items
        lengths = inputs[cost].lengths()
        return max(lengths) * items if self.model.padded else sum(lengths)


def _sendable(error: RemoteError) -> RemoteError:
    """The error itself, unless the model put something into it that has no wire form."""
    try:
        decode_reply(error_reply(b"", error.code, error.message, error.retryable, error.details))
    except (ProtocolError, TypeError, ValueError, OverflowError, RecursionError):
        return ModelFailed(f"the model raised {type(error).__name__} with contents that cannot be sent")
    return error


def _items(inputs: Tensors) -> int:
    return next(iter(inputs.values())).items
