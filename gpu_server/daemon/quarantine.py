"""Inputs that broke the model before: known by digest, and refused for a while instead of being run again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_server.daemon.request import Request
from gpu_server.errors import ModelFailed, RemoteError
from gpu_server.wire import ItemError, Tensors

STRIKES = 2
"""Failures after which an input is refused."""
REFUSED_S = 300.0
"""How long it is refused, and within what time its failures count together."""
MAX_KNOWN = 1024
MAX_LOOKED_AT = 32
"""Items of a request that are looked up one by one: in a larger one that would cost more than it spares."""


@dataclass
class _Offender:
    since: float
    strikes: int = 0
    reason: str = ""


class Quarantine:
    """A bounded table of failed inputs over an injected clock; the one that failed longest ago makes room."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, _Offender] = OrderedDict()

    def note_items(self, request: Request, version: str, errors: Sequence[ItemError]) -> None:
        """Count failures of single items; only those that the model itself made."""
        for error in errors:
            if error.code == ModelFailed.code:
                self._strike(_item(request, version, error.item), error.message, 1)

    def note_crash(self, request: Request, version: str, error: RemoteError) -> None:
        """Refuse from now on what has ended the engine whenever it ran, alone too."""
        self._strike(_digest(request, version, request.inputs), error.message, STRIKES)

    def check(self, request: Request, version: str) -> None:
        """Raise ModelFailed on a request known to fail; one with items that are known to must ride alone."""
        if not self._known:
            return
        offender = self._find(_digest(request, version, request.inputs))
        if offender is not None:
            left_s = REFUSED_S - (self._clock() - offender.since)
            raise ModelFailed(
                f"{offender.reason}; this input failed before and is refused for {left_s:.0f} s"
            )
        if 1 < request.items <= MAX_LOOKED_AT and any(
            self._find(_item(request, version, item)) is not None for item in range(request.items)
        ):
            request.isolate()

    def _strike(self, digest: bytes, reason: str, strikes: int) -> None:
        now = self._clock()
        known = self._known.pop(digest, None)
        if known is None or now - known.since > REFUSED_S:
            known = _Offender(now)
        self._known[digest] = _Offender(now, known.strikes + strikes, reason)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _find(self, digest: bytes) -> _Offender | None:
        known = self._known.get(digest)
        if known is None or known.strikes < STRIKES:
            return None
        if self._clock() - known.since > REFUSED_S:
            del self._known[digest]
            return None
        return known


def _item(request: Request, version: str, item: int) -> bytes:
    part = {name: tensor.slice(item, item + 1) for name, tensor in request.inputs.items()}
    return _digest(request, version, part)


def _digest(request: Request, version: str, inputs: Tensors) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    found.update(repr((request.model, version, sorted(request.params.items()))).encode("utf-8", "replace"))
    for name, tensor in inputs.items():
        found.update(repr((name, tensor.signature, tensor.lengths())).encode())
        found.update(tensor.data)
    return found.digest()
