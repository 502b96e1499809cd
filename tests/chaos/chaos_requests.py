"""Random requests whose right answer is known, and the judgement of what they got."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from chaos_model import MEMORY_TOKENS, MISCOUNTS, NOT_FINITE, RAISES, oracle

GRACE_S = 1.0
"""How late an outcome may be, not counting time in which this process could not run, but for STALLED_S at most."""
STALLED_S = 5.0
HONEST = frozenset(
    {"overloaded", "unavailable", "model_loading", "shutting_down", "engine_crashed", "deadline_exceeded"}
)
"""Errors that a request without fault of its own may get while things break."""
CULPRITS = frozenset({"model_failed", "out_of_memory"})


@dataclass
class Ask:
    """One request: its rows, which of them cannot be answered, and seconds it may take."""

    rows: list[list[int]]
    bad: set[int]
    timeout_s: float
    priority: int


def random_ask(dice: random.Random) -> Ask:
    """Mostly a few short rows; now and then many, and now and then one that breaks the model."""
    bulk = dice.random() < 0.05
    count = dice.randrange(40, 150) if bulk else dice.randrange(1, 6)
    rows = [[dice.randrange(1000) for _ in range(dice.randrange(1, 30))] for _ in range(count)]
    bad = set()
    if dice.random() < 0.03:
        at = dice.randrange(count)
        bad.add(at)
        kind = dice.choice([RAISES, NOT_FINITE, MISCOUNTS, 0])
        rows[at] = [*rows[at], kind] if kind else [7] * (MEMORY_TOKENS + dice.randrange(1, 100))
    return Ask(rows, bad, dice.uniform(0.5, 8.0), 2 if bulk else dice.choice([0, 1, 1]))


@dataclass
class Judge:
    """Every outcome of every request; `wrong` must stay empty. stalled_s: seconds in which nobody here ran, of a time."""

    stalled_s: Callable[[float, float], float]
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    sent: int = 0
    last_right: float = field(default_factory=time.monotonic)
    longest_gap_s: float = 0.0
    slowest_s: float = 0.0
    slowest_unstalled_s: float = 0.0
    longest_wait_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> float:
        """Count a request; the moment it starts."""
        with self._lock:
            self.sent += 1
        return time.monotonic()

    def accepted(self, begun: float) -> float:
        """Note that a worker has taken a request up that began then; the moment, from which its deadline counts."""
        now = time.monotonic()
        with self._lock:
            self.longest_wait_s = max(self.longest_wait_s, now - begun)
        return now

    def answered(
        self, ask: Ask, begun: float, y: Sequence[int], v: Sequence[int], errors: Mapping[int, str]
    ) -> None:
        """Hold an answer, with the codes of items that failed alone, against the oracle."""
        self._time(ask, begun)
        good = [row for row in range(len(ask.rows)) if row not in errors]
        if len(y) != len(ask.rows) or any(y[row] != oracle(ask.rows[row]) for row in good):
            self._note(f"wrong value: {ask.rows} got {list(y)}", wrong=True)
        elif len({v[row] for row in good}) > 1:
            self._note(f"rows of different versions: {sorted({v[row] for row in good})}", wrong=True)
        elif set(errors) != ask.bad or not set(errors.values()) <= CULPRITS:
            self._note(f"{errors} where {ask.bad} are bad of {len(ask.rows)} rows", wrong=True)
        else:
            self._note("right, others' rows apart" if errors else "right", right=not errors)

    def refused(self, ask: Ask, begun: float, code: str) -> None:
        """Take in an error for the whole request."""
        self._time(ask, begun, code)
        culprit = code in CULPRITS and len(ask.bad) == len(ask.rows)
        allowed = code in HONEST or code == "connection" or culprit
        self._note(
            code if allowed else f"{code} where {ask.bad} are bad of {len(ask.rows)} rows", wrong=not allowed
        )

    def _note(self, outcome: str, *, right: bool = False, wrong: bool = False) -> None:
        with self._lock:
            self.outcomes["WRONG" if wrong else outcome] += 1
            if wrong:
                self.wrong.append(outcome)
            if right:
                now = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now - self.last_right)
                self.last_right = now

    def _time(self, ask: Ask, begun: float, outcome: str = "an answer") -> None:
        now, deadline = time.monotonic(), begun + ask.timeout_s
        if now <= deadline:
            return
        over = now - deadline
        counted = over - min(self.stalled_s(deadline, now), STALLED_S)
        with self._lock:
            self.slowest_s = max(self.slowest_s, over)
            self.slowest_unstalled_s = max(self.slowest_unstalled_s, counted)
            if counted > GRACE_S:
                said = f"{over:.1f} s ({counted:.1f} s of them not stalled) after its deadline of {ask.timeout_s:.1f} s"
                self.wrong.append(f"{outcome} {said}")
