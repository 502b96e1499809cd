"""One client object across forks: made before or used before, in parent and children, with threads on both sides."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpu_server.client import Client

# Forking beside FakeServer's threads is what this is about; the child runs only the client and leaves by _exit.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def in_child(work: Callable[[], None]) -> int:
    """Fork, run `work` in the child, and return the child's pid; the child exits 0 if it did not raise."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:  # noqa: BLE001 - the child must end here
        traceback.print_exc(file=sys.stderr)
        os._exit(1)
    os._exit(0)


def assert_good(*pids: int) -> None:
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def use(client: Client, salt: int) -> None:
    """Eight threads, each with answers that only it can want."""

    def work(thread: int) -> None:
        for number in range(10):
            nonce = [salt, thread, number]
            assert client.infer("echo", x=nonce)["x"].tolist() == nonce

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_made_before_the_fork_used_after(client: Client) -> None:
    children = [in_child(lambda salt=salt: use(client, salt)) for salt in range(3)]  # type: ignore[misc]
    use(client, 99)
    assert_good(*children)


def test_used_before_the_fork_and_after_in_both(client: Client) -> None:
    vectors = client.embed(["a", "b"])
    before = client._calls.connections.get()

    def child() -> None:
        np.testing.assert_array_equal(client.embed(["a", "b"]), vectors)
        assert client._calls.connections.get() is not before
        use(client, os.getpid())
        client.close()

    children = [in_child(child) for _ in range(3)]
    use(client, 1)
    assert_good(*children)
    assert client._calls.connections.get() is before
    np.testing.assert_array_equal(client.embed(["a", "b"]), vectors)


def test_grandchildren(client: Client) -> None:
    client.hello()

    def child() -> None:
        client.hello()
        assert_good(in_child(lambda: use(client, 2)))
        use(client, 3)

    assert_good(in_child(child))


def test_a_child_that_drops_what_it_inherited_leaves_the_parent_alone(client: Client) -> None:
    inherited = [Client(client.endpoint) for _ in range(2)]
    for made in inherited:
        made.hello()
    before = inherited[0]._calls.connections.get()

    def child() -> None:
        inherited[1].hello()
        inherited.clear()
        gc.collect()
        use(client, 5)
        assert not before.closed

    assert_good(in_child(child), in_child(child))
    assert not before.closed
    use(inherited[0], 6)
    use(inherited[1], 7)
    assert inherited[0]._calls.connections.get() is before


def test_a_child_that_never_uses_it_leaves_the_parent_alone(client: Client) -> None:
    client.hello()
    assert_good(in_child(lambda: None), in_child(client.close))
    use(client, 4)
