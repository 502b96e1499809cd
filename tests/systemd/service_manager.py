"""A real systemd manager for tests: a user manager as root, in mount and process namespaces of its own.

It runs the units as `gpu-server systemd install` writes them, users and sandbox included; nothing outside changes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from running_daemon import MODELS, ROOT, children, until

WAIT_S = 60.0
MANAGER = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "systemctl", "systemd-sysusers", "systemd-tmpfiles")
UNITS = "/etc/systemd/system"
DROP_IN = "90-test.conf"

# /opt holds the interpreter, the packages, this checkout and the state; a user other than root can read all of it there.
_SCRIPT = """
set -eu
umask 022
mount --bind "$SCRATCH/run" /run
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$SCRATCH/etc,workdir=$SCRATCH/work" /etc
for link in passwd group shadow gshadow; do rm -f "$SCRATCH/etc/.$link.lock"; done
mount --bind "$SCRATCH/opt" /opt
mount --bind "$PYTHON" /opt/python
mount --bind "$PACKAGES" /opt/packages
mount --bind "$CHECKOUT" /opt/checkout
mkdir -p /run/systemd/system /run/systemd/inaccessible
cd /run/systemd/inaccessible
mkdir -m 000 dir; mkfifo -m 000 fifo; mknod -m 000 chr c 0 0; mknod -m 000 blk b 0 0; touch reg sock; chmod 000 reg sock
cd /
/opt/gpu-server/bin/gpu-server systemd install --no-gpu --bin /opt/gpu-server/bin --bind "$BIND"
systemd-sysusers
systemd-tmpfiles --create gpu-server.conf
umask 0
exec 3>"$SCRATCH/ready"
echo ready >&3
exec 3>&-
"$MANAGER" --user &
wait $!
"""


def why_not() -> str:
    """Why a manager cannot be run here; "" if it can."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing or not MANAGER.exists():
        return f"needs systemd: {', '.join(missing) or MANAGER} is not installed"
    probe = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=WAIT_S)
    return "" if done.returncode == 0 else f"namespaces cannot be made here: {done.stderr.strip()}"


class ServiceManager:
    """The manager, from start to end; `run` is its /run as seen from outside, `bind` where gpu-web@.socket listens."""

    def __init__(self, bind: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gs-sd-")
        self._scratch = Path(self._folder.name)
        self._scratch.chmod(0o755)
        self.run = self._scratch / "run"
        self._prepare()
        self._log = (self._scratch / "log").open("w+")
        variables = {
            "SCRATCH": str(self._scratch),
            "PYTHON": sys.base_prefix,
            "PACKAGES": sysconfig.get_path("purelib"),
            "CHECKOUT": str(ROOT),
            "MANAGER": str(MANAGER),
            "BIND": bind,
        }
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", _SCRIPT],
            env=self._environment() | variables,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            until(self._is_up, "the service manager", WAIT_S)
        except AssertionError:
            self.close()
            raise

    def _prepare(self) -> None:
        folders = ("run", "etc", "work", "opt/python", "opt/packages", "opt/checkout", "opt/state/gpu-server")
        for name in (*folders, "opt/cache", "opt/gpu-server/bin"):
            (self._scratch / name).mkdir(parents=True)
        shutil.copy(MODELS / "served_models.py", self._scratch / "opt/state/gpu-server")
        venv = self._scratch / "opt/gpu-server"
        (venv / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (venv / "bin/python").symlink_to(f"/opt/python/bin/{version}")
        site = venv / "lib" / version / "site-packages"
        site.mkdir(parents=True)
        (site / "paths.pth").write_text("/opt/checkout\n/opt/packages\n")
        self._script("gpu-server", "from gpu_server.cli import main")
        self._script("gunicorn", "from gunicorn.app.wsgiapp import run as main")

    def _script(self, name: str, load: str) -> None:
        """A command as pip writes it; the engine process imports it again, so that it must do nothing then."""
        path = self._scratch / "opt/gpu-server/bin" / name
        path.write_text(f'#!/opt/gpu-server/bin/python\n{load}\nif __name__ == "__main__":\n    main()\n')
        path.chmod(0o755)

    @staticmethod
    def _environment() -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH": "/opt/python/lib",
            "HOME": "/opt/state",
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_RUNTIME_DIR": "/run",
            "XDG_CONFIG_HOME": "/opt/state",
            "XDG_STATE_HOME": "/opt/state",
            "XDG_CACHE_HOME": "/opt/cache",
            "SYSTEMD_UNIT_PATH": f"{UNITS}:/usr/lib/systemd/user",
        }

    def _is_up(self) -> bool:
        assert self._process.poll() is None, f"the service manager ended: {self.log}"
        if not (self._scratch / "ready").exists():
            return False
        return self.systemctl("is-system-running", check=False) in ("running", "degraded")

    @property
    def log(self) -> str:
        """What the manager and its set-up have printed."""
        return (self._scratch / "log").read_text(errors="replace")

    def inside(self, *command: str, check: bool = True, wait_s: float = WAIT_S) -> str:
        """Run a command in the namespaces, as root; its output. Process ids in there are its own."""
        (init,) = children(self._process.pid)
        done = subprocess.run(
            ["nsenter", "-t", str(init), "-m", "-p", "--", *command],
            env=self._environment(), capture_output=True, text=True, timeout=wait_s,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """Ask the manager; its answer."""
        return self.inside("systemctl", "--user", *arguments, check=check)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "-P", name, unit)

    def started(self, unit: str) -> subprocess.Popen[bytes]:
        """A start or stop that is waited for later: `systemctl start UNIT` under way."""
        (init,) = children(self._process.pid)
        return subprocess.Popen(
            ["nsenter", "-t", str(init), "-m", "-p", "--", "systemctl", "--user", "start", unit],
            env=self._environment(), stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def write(self, path: str, text: str) -> None:
        """Write a file of /etc as the namespaces see it."""
        self.inside("mkdir", "-p", str(Path(path).parent))
        self.inside("bash", "-c", 'printf %s "$1" > "$2"', "-", text, path)

    def drop_in(self, unit: str, text: str) -> None:
        """Change a unit for one test."""
        self.write(f"{UNITS}/{unit}.d/{DROP_IN}", text)
        self.systemctl("daemon-reload")

    def close(self) -> None:
        """End everything in the namespaces: their first process is killed, and the kernel kills the others."""
        for pid in children(self._process.pid):
            os.kill(pid, signal.SIGKILL)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(WAIT_S)
        self._log.close()
        self._folder.cleanup()
