"""Findings on the web tier: Gunicorn's settings, and what importing the app would do to a worker."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_server.checks import environment, probe
from gpu_server.checks.finding import Finding, Severity, fine
from gpu_server.errors import ConfigError

TIMEOUT_S = 60.0
STOCK = "-c python:web.serving web:app"
ASK_DAEMON = (
    "call the daemon instead (gpu_server.Client), or import it where it is used and never in a worker"
)


class Gunicorn:
    """Options, folder and variables of a Gunicorn: of a running master, or those that were given."""

    def __init__(self, options: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.options = list(options)
        self.cwd = cwd
        self.env = dict(env)

    @classmethod
    def given(cls, options: str) -> Gunicorn:
        """As if `gunicorn OPTIONS` were run here. Raises ConfigError."""
        try:
            return cls(shlex.split(options), Path.cwd(), os.environ)
        except ValueError as error:
            raise ConfigError(f"--gunicorn: {error}") from None

    @classmethod
    def running(cls, pid: int, proc: Path = Path("/proc")) -> Gunicorn:
        """A master's own. Raises ConfigError where they cannot be read."""
        home = proc / str(pid)
        try:
            words = [os.fsdecode(word) for word in (home / "cmdline").read_bytes().split(b"\0")[:-1]]
            pairs = [
                os.fsdecode(pair) for pair in (home / "environ").read_bytes().split(b"\0") if b"=" in pair
            ]
            cwd = (home / "cwd").resolve(strict=True)
        except OSError as error:
            raise ConfigError(f"process {pid} cannot be looked at: {error.strerror}") from None
        at = next(
            (n for n, word in enumerate(words) if Path(word).name in ("gunicorn", "gunicorn.__main__")), None
        )
        if at is None:
            raise ConfigError(
                f"process {pid} does not show Gunicorn's options; give them with --gunicorn 'OPTIONS APP'"
            )
        return cls(words[at + 1 :], cwd, dict(pair.split("=", 1) for pair in pairs))

    def settings(self) -> dict[str, Any]:
        """What Gunicorn makes of them. Raises ProbeFailed."""
        given = {"options": self.options}
        return probe.run("gunicorn_settings", given, timeout_s=TIMEOUT_S, cwd=self.cwd, env=self.env)

    def imports(self, app: str) -> dict[str, Any]:
        """What importing the app reached for. Raises ProbeFailed."""
        return probe.run("wsgi_app", {"app": app}, timeout_s=TIMEOUT_S, cwd=self.cwd, env=self.env)


def look(gunicorn: Gunicorn) -> list[Finding]:
    """All findings on one Gunicorn."""
    try:
        facts = gunicorn.settings()
    except probe.ProbeFailed as error:
        return [
            Finding(
                "gunicorn",
                "error",
                f"Gunicorn refuses its settings: {error}",
                "gunicorn --check-config says more",
            )
        ]
    found = [finding for check in SETTINGS if (finding := check(facts)) is not None]
    if not any(finding.severity in ("warning", "error") for finding in found):
        workers = f"{facts['workers']} {facts['worker_class']} workers with {facts['threads']} threads"
        said = f"{workers}, timeout {facts['timeout']} s"
        found.insert(0, fine("gunicorn", said))
    return [*environment.findings(facts["unread"]), *found, *_app(gunicorn, facts["app"])]


def worker_class(facts: Mapping[str, Any]) -> Finding | None:
    """A sync worker waits for the GPU with one request, so that batches stay small."""
    if facts["worker_class"] != "sync":
        return None
    said = "worker class sync: one request at a time and no kept connections, so batches stay small"
    return Finding("gunicorn", "warning", said, "-k gthread --threads 64, or -c python:web.serving")


def timeout(facts: Mapping[str, Any]) -> Finding | None:
    """Gunicorn must not kill a worker before its client gives up waiting."""
    gunicorn_s, web_s = facts["timeout"], facts["web_timeout_s"]
    if gunicorn_s == 0 or gunicorn_s > web_s:
        return None
    said = f"timeout {gunicorn_s} s is not above the client's deadline of {web_s:g} s: a slow answer may kill a worker"
    fix = (
        f"--timeout {int(web_s) + 5}, or a GPU_SERVER_WEB_TIMEOUT_S (Client(timeout_s=…)) below {gunicorn_s}"
    )
    # A sync worker tells Gunicorn that it lives between two requests only, the others meanwhile too.
    severity: Severity = "error" if facts["worker_class"] == "sync" else "warning"
    return Finding("gunicorn", severity, said, fix)


def graceful_timeout(facts: Mapping[str, Any]) -> Finding | None:
    """A worker that is told to end must be given the time of the slowest answer."""
    if facts["graceful_timeout"] >= facts["web_timeout_s"]:
        return None
    said = f"graceful_timeout {facts['graceful_timeout']} s is below the client's deadline of {facts['web_timeout_s']:g} s"
    fix = f"--graceful-timeout {int(facts['web_timeout_s']) + 5}: a restart cuts requests that wait longer"
    return Finding("gunicorn", "warning", said, fix)


def torch_guard(facts: Mapping[str, Any]) -> Finding | None:
    """Whether a worker would notice that it imports torch."""
    if facts["guarded"] and facts["guard"] == "error":
        return None
    said = f"the torch guard is {facts['guard']}" if facts["guarded"] else "the torch guard is not installed"
    fix = (
        "unset GPU_SERVER_WEB_TORCH_GUARD"
        if facts["guarded"]
        else "-c python:web.serving, or use its post_fork hook"
    )
    return Finding("gunicorn", "info", f"{said}: an import of torch in a worker goes unnoticed", fix)


def preload(facts: Mapping[str, Any]) -> Finding | None:
    """Under --preload the app is imported once, before the fork: what it does to CUDA there, all workers inherit."""
    if not facts["preload_app"]:
        return None
    said = "preload: the app is imported in the master; fine as long as that import leaves CUDA alone (see imports)"
    return Finding("gunicorn", "info", said)


SETTINGS = (worker_class, timeout, graceful_timeout, torch_guard, preload)


def _app(gunicorn: Gunicorn, app: str) -> list[Finding]:
    if not app:
        return [
            Finding(
                "imports", "info", "no app is named, so its imports were not looked at", "name it: module:app"
            )
        ]
    try:
        return imports(app, gunicorn.imports(app))
    except probe.ProbeFailed as error:
        return [
            Finding(
                "imports", "error", f"{app} ends the process that imports it: {error}", "import it by hand"
            )
        ]


def imports(app: str, answer: Mapping[str, Any]) -> list[Finding]:
    """Which imports of an app reach for a GPU framework, and whether the app can do without."""
    chains: Mapping[str, Sequence[str]] = answer["chains"]
    refused = bool(chains) and any(package in answer["error"] for package in chains)
    found = [_reached(app, package, chain, refused) for package, chain in chains.items()]
    if answer["error"] and not refused:
        found.append(
            Finding(
                "imports", "error", f"{app} cannot be imported: {answer['error']}", "workers would not start"
            )
        )
    return found or [fine("imports", f"{app} imports no GPU framework")]


def _reached(app: str, package: str, chain: Sequence[str], refused: bool) -> Finding:
    said = f"importing {app} imports {package}, which CUDA does not survive in a forked worker: {' → '.join(chain)}"
    if refused:
        return Finding("imports", "error", said, ASK_DAEMON)
    # Refused here too, and the app went on: with the guard on, workers do the same.
    return Finding("imports", "info", f"{said}; the app does without where the torch guard is on", ASK_DAEMON)
