"""What an engine process is told of its models and how to run them, made from the settings. Pure."""

from __future__ import annotations

from gpu_server.config import Config, ModelConfig
from gpu_server.errors import ConfigError
from gpu_server.source import kind_of, name_of
from gpu_server.wire.events import EngineSpec, ModelSpec

_OF_TEXTS = ("revision", "dtype", "pooling", "max_length")


def of_engine(config: Config, models: tuple[ModelSpec, ...]) -> EngineSpec:
    """How an engine runs these models."""
    engine = config.engine
    return EngineSpec(
        device=engine.device,
        threads=engine.threads,
        max_memory_mb=engine.max_memory_mb,
        max_batch_tokens=engine.max_batch_tokens,
        max_batch_items=engine.max_batch_items,
        batches_in_flight=engine.batches_in_flight,
        max_batch_bytes=config.limits.max_queue_bytes,
        packed=engine.packed,
        graphs=engine.graphs,
        compiled=engine.compile,
        fused=engine.fused,
        log_level=config.server.log_level,
        log_format=config.server.log_format,
        models=models,
    )


def of_model(model: ModelConfig) -> ModelSpec:
    """One model, under the name it has or one made from its source. Raises ConfigError on a setting that it cannot have."""
    unset, kind = ModelConfig(), kind_of(model.source)
    given = [name for name in _OF_TEXTS if getattr(model, name) != getattr(unset, name)]
    if given and kind == "class":
        raise ConfigError(
            f"{model.source} is a class, and {given[0]} is a setting of text models; leave it out"
        )
    if model.revision and kind == "folder":
        raise ConfigError(
            f"{model.source} is a folder, and revision is a setting of models of the hub; leave it out"
        )
    return ModelSpec(
        name=model.name or name_of(model.source),
        source=model.source,
        revision=model.revision,
        dtype=model.dtype,
        pooling=model.pooling,
        max_length=model.max_length,
        max_batch_tokens=model.max_batch_tokens,
        max_batch_items=model.max_batch_items,
    )
