"""The order of requests: by the moment they would finish if all senders shared the engine equally."""

from __future__ import annotations

from gpu_server.daemon.request import Request

PRIORITY_WEIGHT = (0.25, 1.0, 4.0)
BULK = 2
"""The priority whose requests are bulk work, however few."""
PROMPT = 2
"""Batches that a flow may have outstanding before its requests are bulk work."""
LEAST = 1 / 16
"""A batch counts as this part of a full one at least: it takes its time, however little is in it."""
SMALL = 8
"""Requests below this part of a batch count as of one size."""


class Flow:
    """What one peer asks of one model, alike in priority and size: cost outstanding, and the tag of its last request."""

    __slots__ = ("owed", "tag")

    def __init__(self) -> None:
        self.owed = 0
        self.tag = 0.0


class Flows:
    """Flows with requests outstanding, and the virtual time by which they share the engine.

    Virtual time moves by the work done over the number of flows. Requests of one flow are in no other's way.
    """

    def __init__(self) -> None:
        self._flows: dict[tuple[object, ...], Flow] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._flows)

    def owed(self, request: Request, budget: int) -> int:
        """Cost of the request and of what its flow has outstanding, for a model with batches of `budget`."""
        flow = self._flows.get(_key(request, budget))
        return request.cost if flow is None else flow.owed + request.cost

    def enter(self, request: Request, budget: int) -> None:
        """Give a request its place: in order of arrival, or as bulk work behind all that its flow has outstanding."""
        key = _key(request, budget)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow()
        flow.owed += request.cost
        deep = flow.owed > PROMPT * budget
        weight = PRIORITY_WEIGHT[request.priority]
        tag = self._now + (1 + flow.owed / budget if deep else 1) * weight
        # Never before its elders, whose tags are high where others of the flow have left without being served; but what
        # is prompt does not stand behind work that is gone.
        last = flow.tag if deep else min(flow.tag, self._now + (1 + PROMPT) * weight)
        request.tag = flow.tag = tag if tag > last else last
        request.bulk = deep or request.priority == BULK

    def leave(self, request: Request) -> None:
        """Forget a request that has its reply."""
        flow = self._flows[request.flow]
        flow.owed -= request.cost
        if not flow.owed:
            del self._flows[request.flow]

    def served(self, batches: float) -> None:
        """Let virtual time pass for a batch of so much work."""
        self._now += max(batches, LEAST) / max(1, len(self._flows))


def _key(request: Request, budget: int) -> tuple[object, ...]:
    """Which flow a request belongs to, for as long as it lives."""
    if not request.flow:
        cost, small = request.cost, budget // SMALL
        size = (cost if cost > small else small).bit_length()
        request.flow = (request.peer, request.model, request.priority, size)
    return request.flow
