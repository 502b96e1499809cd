"""The engine ends when its daemon does: a kernel signal, and an end-of-file on the pipe between them."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1


def die_with_parent(pipe: Connection) -> None:
    """Arrange the end of this process: by the kernel when the daemon dies, or when the pipe closes.

    Signals meant for the daemon (Ctrl-C and systemd's TERM reach the whole group) are ignored here: the daemon drains first.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_wait_for_eof, args=(pipe,), name="parent", daemon=True).start()


def _wait_for_eof(pipe: Connection) -> None:
    try:
        pipe.recv_bytes()
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)


def kill_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux; elsewhere the pipe must do)."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
