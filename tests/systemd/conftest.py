"""One service manager for all tests of the units, set up as docs/deploy.md says, and services that end with each test."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from service_manager import DROP_IN, UNITS, ServiceManager, why_not

from gpu_server.client import Client


@pytest.fixture(scope="session")
def web_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def installed(web_port: int) -> Iterator[ServiceManager]:
    """A manager with the units installed and the instance `main` serving a small model."""
    if reason := why_not():
        pytest.skip(f"no service manager can be run here: {reason}")
    manager = ServiceManager(bind=f"127.0.0.1:{web_port}")
    try:
        manager.write("/etc/gpu-server/main.toml", '[[models]]\nsource = "served_models:Numbers"\n')
        manager.write("/etc/gpu-server/main.env", "GPU_SERVER_THREADS=1\n")
        web = (
            f"GPU_SERVER_WEB_BIND=127.0.0.1:{web_port}\nGPU_SERVER_WEB_WORKERS=2\nGPU_SERVER_WEB_THREADS=8\n"
        )
        manager.write("/etc/gpu-server/main.web.env", web)
        for unit in ("gpu-server", "gpu-web"):
            log = f"[Service]\nStandardOutput=append:/run/{unit}.log\nStandardError=append:/run/{unit}.log\n"
            manager.write(f"{UNITS}/{unit}@.service.d/80-log.conf", log)
        manager.systemctl("daemon-reload")
        yield manager
    finally:
        manager.close()


@pytest.fixture
def manager(installed: ServiceManager) -> Iterator[ServiceManager]:
    """The manager with nothing running, before and after."""
    yield installed
    installed.systemctl("stop", "gpu-web@main.socket", "gpu-server@main.socket", check=False)
    installed.systemctl("stop", "gpu-web@main", "gpu-server@main", check=False)
    installed.systemctl("reset-failed", check=False)
    installed.inside("rm", "-f", f"{UNITS}/gpu-server@.service.d/{DROP_IN}")
    installed.systemctl("daemon-reload")


@pytest.fixture
def client(manager: ServiceManager) -> Iterator[Client]:
    """A client of gpu-server@main."""
    with Client(f"ipc://{manager.run}/gpu-server/main/gpu-server.sock", timeout_s=20) as made:
        yield made
