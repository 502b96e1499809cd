"""The container files: linted, checked against schemas, and held against the code they start."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from running_daemon import ROOT
from werkzeug.test import Client

from gpu_server import __version__, config
from gpu_server.cli import VERBS
from web.settings import Settings, variable_of

FOLDER = ROOT / "containers"
DOCKERFILES = sorted(FOLDER.glob("*.Dockerfile"))
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
TEXTS = {path.name: path.read_text("utf-8") for path in FOLDER.iterdir()}


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TEXTS["compose.yaml"])
    return loaded


@pytest.fixture
def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(TEXTS["kubernetes.yaml"]))


@pytest.fixture
def pod(kubernetes: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = (part for part in kubernetes if part["kind"] == "Deployment")
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def user_of(dockerfile: str) -> tuple[int, int]:
    found = re.findall(r"^USER (\d+):(\d+)$", TEXTS[dockerfile], re.MULTILINE)[-1]
    return int(found[0]), int(found[1])


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pass_the_linter(path: Path) -> None:
    done = subprocess.run([str(HADOLINT), str(path)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "")


def test_kubernetes_resources_follow_their_schemas(kubernetes: list[dict[str, Any]]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for resource in kubernetes:
        validator.validate(resource, validator.latest_version(), strict=True)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_reaches_the_build(path: Path) -> None:
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", TEXTS[path.name], re.MULTILINE)
    sources = {name for line in copied for name in line.split()}
    assert sources == let_through
    assert all((ROOT / name).exists() for name in sources)


def test_only_the_daemon_has_torch_and_a_gpu(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    assert "'.[server]'" in TEXTS["daemon.Dockerfile"]
    assert "'.[web]'" in TEXTS["web.Dockerfile"]
    assert "! /opt/gpu-server/bin/python -c 'import torch'" in TEXTS["web.Dockerfile"]
    devices = compose["services"]["daemon"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
    assert "deploy" not in compose["services"]["web"]
    assert pod["initContainers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]


def test_images_are_of_this_version(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    images = [service["image"] for service in compose["services"].values()]
    images += [container["image"] for container in (*pod["initContainers"], *pod["containers"])]
    assert set(images) == {f"gpu-server-daemon:{__version__}", f"gpu-server-web:{__version__}"}


def test_users_differ_and_share_the_sockets_group(compose: dict[str, Any], pod: dict[str, Any]) -> None:
    daemon, web = user_of("daemon.Dockerfile"), user_of("web.Dockerfile")
    assert daemon[0] != web[0] and daemon[1] == web[1]
    volume = compose["volumes"]["socket"]["driver_opts"]["o"]
    assert f"uid={daemon[0]},gid={daemon[1]},mode=0750" in volume
    for container, (uid, gid) in zip(
        (*pod["initContainers"], *pod["containers"]), (daemon, web), strict=True
    ):
        context = container["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (uid, gid)
        assert context["readOnlyRootFilesystem"] and context["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["fsGroup"] == daemon[1]


def test_both_mount_the_sockets_folder_and_only_declared_volumes(
    compose: dict[str, Any], pod: dict[str, Any]
) -> None:
    for service in compose["services"].values():
        assert any(mount.startswith("socket:/run/gpu-server") for mount in service["volumes"])
        assert {mount.partition(":")[0] for mount in service["volumes"]} <= set(compose["volumes"])
    declared = {volume["name"] for volume in pod["volumes"]}
    for container in (*pod["initContainers"], *pod["containers"]):
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["socket"] == "/run/gpu-server" and set(mounts) <= declared


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_variables_are_settings(name: str) -> None:
    known = {config.env_name(f.name) for kind in config.SECTIONS.values() for f in fields(kind)}
    known |= {variable_of(f.name) for f in fields(Settings)}
    assert set(re.findall(r"GPU_SERVER_[A-Z_]+", TEXTS[name])) <= known


def test_the_kubernetes_settings_are_accepted(kubernetes: list[dict[str, Any]], tmp_path: Path) -> None:
    (settings,) = (part["data"] for part in kubernetes if part["kind"] == "ConfigMap")
    for name, text in settings.items():
        (tmp_path / name).write_text(text)
        assert config.load(tmp_path / name, env={}).models


def test_probes_ask_what_exists(pod: dict[str, Any]) -> None:
    from web import app

    (daemon,), (web,) = pod["initContainers"], pod["containers"]
    for probe in ("startupProbe", "livenessProbe"):
        assert re.findall(r"gpu-server (\w+)", " ".join(daemon[probe]["exec"]["command"])) == ["status"]
    asked = {web[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    asked |= set(
        re.findall(r"http://127\.0\.0\.1:8000(/\w+)", TEXTS["web.Dockerfile"] + TEXTS["compose.yaml"])
    )
    assert asked == {"/livez", "/readyz"}
    with Client(app).get("/livez") as alive, Client(app).get("/readyz") as ready:
        assert (alive.status_code, ready.status_code) == (200, 503)
    assert "status" in VERBS
