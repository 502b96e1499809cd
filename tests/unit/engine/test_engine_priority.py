"""What loads beside a serving engine runs behind it, and as before once it serves itself."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from gpu_server.engine import priority

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")


def nice(thread: int = 0) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def test_threads_made_meanwhile_come_back_too() -> None:
    before, end = nice(), threading.Event()
    if not priority._can_return(before):
        pytest.skip("a priority cannot be raised here")
    made = threading.Thread(target=end.wait, args=(30,))
    with pytest.raises(ValueError), priority.lowered():
        made.start()
        assert made.native_id is not None
        assert nice() == nice(made.native_id) == min(19, before + priority.LOADING_NICE)
        raise ValueError
    assert nice() == nice(made.native_id) == before
    end.set()
    made.join()


def test_a_priority_that_could_not_be_raised_again_is_not_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    before, lower = nice(), os.setpriority

    def only_lower(which: int, who: int, wanted: int) -> None:
        if wanted <= before:
            raise PermissionError
        lower(which, who, wanted)

    monkeypatch.setattr(os, "setpriority", only_lower)
    with priority.lowered():
        assert nice() == before
    assert nice() == before
