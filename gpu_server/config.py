"""The daemon's settings: each declared once here, read as flag > environment > TOML file > default."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from gpu_server.errors import ConfigError

ENV_PREFIX = "GPU_SERVER_"
POOLINGS = ("", "cls", "mean", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean", "splade")
_BOOLS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


def setting(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: str = "",
    flag: bool = True,
) -> Any:
    """Declare a setting: default, help text and allowed values. Flag, variable and key follow its name.

    pattern: a regular expression for the whole value; the help text must say the same, errors quote it. flag: whether it has
    a flag and a variable; a setting of a model has no variable.
    """
    about = {"help": text, "low": low, "high": high, "choices": choices, "pattern": pattern, "flag": flag}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class ServerConfig:
    """The daemon process."""

    endpoint: str = setting(
        "", "socket to serve on: ipc:///path or tcp://host:port; empty means the default place"
    )
    curve_key_file: str = setting(
        "", "the daemon's secret key (`gpu-server keys`), for tcp; only clients with keys connect then"
    )
    curve_clients_file: str = setting(
        "", "public keys of those clients: one a line, a name behind it; read again when it has changed"
    )
    insecure_tcp: bool = setting(
        False,
        "serve on tcp whoever can reach the port, from other machines too, without keys and unencrypted",
    )
    log_level: str = setting(
        "info", "least severe log lines to write", choices=("debug", "info", "warning", "error")
    )
    log_format: str = setting("text", "form of a log line: text is key=value", choices=("text", "json"))
    drain_timeout_s: float = setting(
        30.0, "seconds that a stop waits for accepted requests", low=0, high=3600
    )
    while_loading: str = setting(
        "auto",
        "what requests do during the first load: wait for it, up to their deadlines, or be refused with model_loading;"
        " auto lets them wait on a socket that the service manager holds",
        choices=("auto", "wait", "refuse"),
    )
    metrics_port: int = setting(
        0, "serve /metrics at this port of 127.0.0.1 too; 0 does not", low=0, high=65_535
    )
    tei_metrics: bool = setting(
        False, "repeat metrics under the names that Text-Embeddings-Inference has for them"
    )


@dataclass(frozen=True)
class LimitsConfig:
    """What is accepted; announced to clients in `hello`."""

    max_frame_bytes: int = setting(16 << 20, "bytes of one message frame", low=4096, high=1 << 31)
    max_request_bytes: int = setting(32 << 20, "bytes of one request", low=4096, high=1 << 31)
    max_items: int = setting(2048, "items of one request", low=1, high=4096)
    max_text_bytes: int = setting(1 << 20, "bytes of one text sent to be tokenised here", low=1, high=1 << 31)
    max_queue_items: int = setting(
        65_536, "items that may wait; three quarters of them for a sender that is alone", low=1, high=1 << 30
    )
    max_queue_bytes: int = setting(
        256 << 20, "bytes of input that may wait, shared as the items are", low=4096, high=(1 << 31) - 1
    )
    max_peer_bytes: int = setting(
        256 << 20,
        "bytes of replies that one client may leave unread, and of an answer that several batches give",
        low=4096,
        high=1 << 40,
    )
    default_deadline_ms: int = setting(
        30_000, "deadline of a request that names none", low=1, high=86_400_000
    )


@dataclass(frozen=True)
class EngineConfig:
    """The engine process and the batches it runs."""

    device: str = setting(
        "auto", "auto (the first GPU if there is one), cpu, cuda or cuda:N", pattern=r"auto|cpu|cuda(:\d+)?"
    )
    max_memory_mb: int = setting(
        0, "MiB of the GPU's memory that the engine may take; 0 means all of it", low=0, high=1 << 24
    )
    max_batch_tokens: int = setting(
        0, "most that one batch may cost; 0 means 16384 on a GPU and 2048 on a CPU", low=0, high=1 << 30
    )
    max_batch_items: int = setting(2048, "most items in one batch", low=1, high=1 << 20)
    batches_in_flight: int = setting(
        2, "batches sent to the engine before the first answers; two more where they are brief", low=1, high=8
    )
    load_timeout_s: float = setting(
        600.0, "seconds a load and warm-up may take without progress", low=1, high=86_400
    )
    batch_timeout_s: float = setting(
        300.0, "seconds a batch may run before the engine is taken to hang and respawned", low=1, high=86_400
    )
    threads: int = setting(
        0, "CPU threads of torch; 0 means one per physical core of its share", low=0, high=4096
    )
    packed: bool = setting(
        True,
        "run text models packed, without padding, where they give the same numbers so; off, all run padded",
    )
    graphs: bool = setting(True, "on a GPU, run packed text models as CUDA graphs")
    fused: bool = setting(True, "in graphs, replace the layers of BERT-like models by hand-fused ones")
    compile: bool = setting(
        True, "in graphs, compile the layers of other text models: faster, but a slow first start"
    )


@dataclass(frozen=True)
class ModelConfig:
    """One model to serve: a `[[models]]` table, or an argument of `start`, whose flags are for a single model."""

    source: str = setting(
        "", "pkg.module:Class, a folder, or a hub id; empty means all-MiniLM-L6-v2", flag=False
    )
    name: str = setting("", "name clients ask for; empty means one made from the source", flag=False)
    revision: str = setting("", "of a model of the hub: a tag or commit")
    dtype: str = setting(
        "auto",
        "number type of a text model's weights",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    pooling: str = setting("", "overrides a text model's own; splade makes sparse vectors", choices=POOLINGS)
    max_length: int = setting(0, "tokens of one text; 0 means the text model's own", low=0, high=1 << 20)
    max_batch_tokens: int = setting(
        0, "overrides the engine's setting; 0 does not", low=0, high=1 << 30, flag=False
    )
    max_batch_items: int = setting(
        0, "overrides the engine's setting; 0 does not", low=0, high=1 << 20, flag=False
    )


@dataclass(frozen=True)
class ClientConfig:
    """A client of a daemon on tcp: variables, or `Client(settings=ClientConfig(…))`."""

    curve_client_key_file: str = setting("", "the client's own secret key (`gpu-server keys`)", flag=False)
    curve_server_key_file: str = setting("", "the daemon's public key", flag=False)
    insecure_tcp: bool = setting(
        False, "call a daemon on another machine without keys and unencrypted", flag=False
    )


@dataclass(frozen=True)
class Config:
    """All settings; `models` is empty when none is named, which means the default model."""

    server: ServerConfig = field(default_factory=ServerConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    models: tuple[ModelConfig, ...] = ()


SECTIONS: dict[str, type] = {"server": ServerConfig, "limits": LimitsConfig, "engine": EngineConfig}
OTHERS: dict[str, type] = {"`[[models]]`": ModelConfig, "Clients": ClientConfig}
"""What is no section, by its title in the reference."""


def load(
    path: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    sources: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> Config:
    """Merge a TOML file, the environment, command-line flags and model arguments into a Config.

    Raises ConfigError, naming the setting, where it came from and what would be right.
    """
    env = os.environ if env is None else env
    table = _read_toml(path) if path else {}
    models = table.pop("models", [])
    _refuse_unknown(table, set(SECTIONS) | {"models"}, f"{path}: section")
    built: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        given = table.get(name, {})
        if not isinstance(given, dict):
            raise ConfigError(f"{path}: [{name}] must be a table")
        built[name] = _build(kind, name, given, str(path), flags or {}, env)
    if not isinstance(models, list) or not all(isinstance(m, dict) for m in models):
        raise ConfigError(f"{path}: models must be [[models]] tables")
    tables = [{"name": name, "source": source} for name, source in map(split_name, sources)] or models
    built["models"] = _models(tables, str(path), flags or {})
    return Config(**built)


def client(env: Mapping[str, str] | None = None) -> ClientConfig:
    """A client's settings in the environment. Raises ConfigError naming the variable."""
    settings: ClientConfig = _build(ClientConfig, "client", {}, "", {}, os.environ if env is None else env)
    return settings


def split_name(model: str) -> tuple[str, str]:
    """Name and source of `[NAME=]MODEL`, as command lines have it; the name is "" where none is given."""
    name, equals, source = model.partition("=")
    return (name, source) if equals and not Path(model).is_dir() else ("", model)


def env_name(name: str) -> str:
    """The environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def _models(tables: list[dict[str, Any]], path: str, flags: Mapping[str, Any]) -> tuple[ModelConfig, ...]:
    flagged = [about.name for about in fields(ModelConfig) if about.metadata["flag"]]
    given = {name: flags[name] for name in flagged if flags.get(name) is not None}
    if given and len(tables) > 1:
        flag = _flag_name(next(iter(given)))
        raise ConfigError(
            f"{flag} is for one model, and there are {len(tables)}: say it under [[models]] of a file"
        )
    tables = tables or ([{}] if given else [])
    return tuple(_build(ModelConfig, "models", table, path, given, {}) for table in tables)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _build(
    kind: type,
    section: str,
    table: Mapping[str, Any],
    path: str,
    flags: Mapping[str, Any],
    env: Mapping[str, str],
) -> Any:
    declared = {f.name: f for f in fields(kind)}
    _refuse_unknown(table, set(declared), f"{path}: [{section}] key")
    types = get_type_hints(kind)
    values = {}
    for name, about in declared.items():
        if flags.get(name) is not None:
            raw, origin = flags[name], _flag_name(name)
        elif env.get(env_name(name)):
            raw, origin = env[env_name(name)], env_name(name)
        elif name in table:
            raw, origin = table[name], f"{path}: {section}.{name}"
        else:
            continue
        values[name] = parse(raw, types[name], origin, about.metadata)
    return kind(**values)


def parse(raw: Any, kind: type, origin: str, about: Mapping[str, Any]) -> Any:
    """A value of `kind` from text or TOML, checked against the declaration; raises ConfigError naming `origin`."""
    value = raw
    if isinstance(raw, str) and kind is bool:
        value = _BOOLS.get(raw.lower(), raw)
    elif isinstance(raw, str) and kind in (int, float):
        try:
            value = kind(raw)
        except ValueError:
            raise ConfigError(f"{origin}: {raw!r} is not {_article(kind)}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{origin}: {raw!r} is not {_article(kind)}")
    if about["choices"] and value not in about["choices"]:
        raise ConfigError(
            f"{origin}: {value!r} is not one of {', '.join(c or '(empty)' for c in about['choices'])}"
        )
    if about["pattern"] and not re.fullmatch(about["pattern"], str(value)):
        raise ConfigError(f"{origin}: {value!r} is not {about['help']}")
    low, high = about["low"], about["high"]
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise ConfigError(f"{origin}: {value} is outside {low} … {high}")
    return value


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[kind]


def _refuse_unknown(table: Mapping[str, Any], known: set[str], what: str) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
            raise ConfigError(f"{what} {name!r} is unknown{hint}")


def reference() -> str:
    """The settings as a Markdown page (docs/configuration.md), made from their declarations."""
    lines = [
        "# Configuration",
        "",
        "Every setting of the daemon and its clients, from the declarations in `gpu_server/config.py`",
        "(`gpu-server config --reference` prints this page). A flag wins over the environment, that over the TOML file",
        "(`--config FILE`), that over the default.",
    ]
    for title, kind in ({f"`[{name}]`": kind for name, kind in SECTIONS.items()} | OTHERS).items():
        lines += ["", f"## {title}", "", (kind.__doc__ or "").split("\n")[0], ""]
        lines += ["| key | flag | environment | default | meaning |", "|---|---|---|---|---|"]
        for about in fields(kind):
            flagged = about.metadata["flag"]
            read = kind is ClientConfig or (flagged and kind is not ModelConfig)
            variable = f"`{env_name(about.name)}`" if read else ""
            default = "" if about.default in ("", MISSING) else f"`{str(about.default).lower()}`"
            flag = _flag(about.name, about.default) if flagged else ""
            lines.append(f"| `{about.name}` | {flag} | {variable} | {default} | {meaning(about.metadata)} |")
    return "\n".join(lines) + "\n"


def _flag_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _flag(name: str, default: object) -> str:
    flag = _flag_name(name)
    return f"`{flag}` `--no-{flag[2:]}`" if isinstance(default, bool) else f"`{flag}`"


def meaning(about: Mapping[str, Any]) -> str:
    """The help text of a declared setting, with the values it may have."""
    text = str(about["help"])
    if about["choices"]:
        text += f" ({', '.join(c for c in about['choices'] if c)})"
    elif about["low"] is not None:
        text += f" ({about['low']} … {about['high']})"
    return text
