"""A model from the current folder through the installed command, which does not search that folder by itself."""

from __future__ import annotations

import pytest
from running_daemon import StartDaemon

pytestmark = pytest.mark.slow


def test_a_class_in_the_current_folder(daemon: StartDaemon) -> None:
    running = daemon("served_models:Numbers", installed=True).wait_ready()
    assert running.client.infer("Numbers", x=[1, 2])["y"].tolist() == [3, 5]
    running.terminate()
    assert running.wait_end() == 0
