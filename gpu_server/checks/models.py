"""Findings on the models: they load and run in a process of their own, as an engine would have them."""

from __future__ import annotations

import json

import msgspec

from gpu_server import source, specs
from gpu_server.checks import probe
from gpu_server.checks.finding import Finding, fine
from gpu_server.config import Config, ModelConfig
from gpu_server.daemon import model_set
from gpu_server.errors import ConfigError, MissingDependency, ModelClassError, ModelFolderMissing

_NAME = "name module:Class, a folder or a hub id that is there"


def names(config: Config, needed: bool = True) -> list[Finding]:
    """What can be told of the models without loading them; empty where nothing speaks against that.

    needed: this machine is to run them; else it may lack the packages, as one with web workers only does.
    """
    models = config.models or (ModelConfig(),)
    found: list[Finding] = []
    for model in models:
        try:
            source.check(model.source)
        except MissingDependency as error:
            return [*found, _missing(error, needed)]
        except (ModelFolderMissing, ModelClassError) as error:
            found.append(Finding("model", "error", str(error), _NAME))
            continue
        except ConfigError as error:
            broken = source.folder_of(model.source).is_dir()
            found.append(Finding("model", "error", str(error), "mend or replace that" if broken else _NAME))
            continue
        found += _refused((model,))
    return found or _refused(models)


def _refused(models: tuple[ModelConfig, ...]) -> list[Finding]:
    """What a start would say of the settings of these models."""
    try:
        model_set.from_config(models)
    except ConfigError as error:
        said, _, fix = str(error).partition("; ")
        return [Finding("model", "error", said, fix)]
    return []


def _missing(error: MissingDependency, needed: bool) -> Finding:
    said, _, fix = str(error).partition("; ")
    if needed:
        return Finding("model", "error", said, fix)
    return Finding(
        "model",
        "info",
        f"{said}, so no model was looked at: web workers need none",
        f"to run them here: {fix}",
    )


def load(config: Config, timeout_s: float) -> list[Finding]:
    """Load and run all models, in whose names nothing is wrong, together as the engine has them."""
    spec = specs.of_engine(config, model_set.from_config(config.models))
    spec = msgspec.structs.replace(spec, log_level="error", log_format="text")
    try:
        answer = probe.run("model", json.loads(msgspec.json.encode(spec)), timeout_s=timeout_s)
    except probe.ProbeFailed as error:
        return [
            Finding("model", "error", str(error), "gpu-server start --log-level debug shows the traceback")
        ]
    return [_loaded(model, answer["device"]) for model in answer["models"]]


def _loaded(model: dict[str, object], device: str) -> Finding:
    how = ", ".join(str(model[key]) for key in ("kind", "dtype", "runs") if model[key])
    if not model["example"]:
        said = f"{model['name']} loads on {device} ({how}); it has no example(), so it was not run"
        return Finding("model", "info", said, "give the class an example(): the daemon warms up with it")
    return fine("model", f"{model['name']} loads and runs on {device} ({how})")
