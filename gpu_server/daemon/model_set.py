"""The set of models to serve, each under a name of its own: made from the settings, changed by the owner. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from gpu_server import specs
from gpu_server.config import ModelConfig, parse
from gpu_server.daemon.change import Models
from gpu_server.errors import ConfigError, InvalidRequest, ModelNotFound
from gpu_server.wire.events import ModelSpec

_SETTINGS = {about.name: about.metadata for about in fields(ModelConfig) if about.name != "name"}


def from_config(models: tuple[ModelConfig, ...]) -> Models:
    """The models to load at the start; raises ConfigError on a name used twice."""
    made = tuple(specs.of_model(model) for model in models or (ModelConfig(),))
    names = [spec.name for spec in made]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two models are named {name!r}; give one another name: NAME=MODEL, or name in [[models]]"
            )
    return made


def from_request(name: str, params: Mapping[str, Any]) -> ModelSpec:
    """A model as `load` names it: its settings by their names in `[[models]]`. Raises InvalidRequest on a wrong one."""
    kinds = get_type_hints(ModelConfig)
    values = {}
    try:
        for key, value in params.items():
            if key not in _SETTINGS:
                raise ConfigError(f"{key!r} is no setting of a model; known: {', '.join(_SETTINGS)}")
            values[key] = parse(value, kinds[key], key, _SETTINGS[key])
        return specs.of_model(ModelConfig(name=name, **values))
    except ConfigError as error:
        raise InvalidRequest(str(error)) from None


def named_in(params: Mapping[str, Any]) -> dict[str, Any]:
    """What of the parameters of a `load` a log may show: a model's settings, and nothing else, which may be a secret."""
    return {key: value for key, value in params.items() if key in _SETTINGS}


def with_model(models: Models, spec: ModelSpec) -> Models:
    """The set with a model in the place of the one of its name, or behind the others."""
    if any(known.name == spec.name for known in models):
        return tuple(spec if known.name == spec.name else known for known in models)
    return (*models, spec)


def without_model(models: Models, name: str) -> Models:
    """The set without a model; raises ModelNotFound, and InvalidRequest if no other would be left."""
    left = tuple(known for known in models if known.name != name)
    if len(left) == len(models):
        names = [known.name for known in models]
        raise ModelNotFound(f"model {name!r} is not served; served: {', '.join(names)}", {"models": names})
    if not left:
        raise InvalidRequest(f"{name!r} is the only model; stop the server instead")
    return left
