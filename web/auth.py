"""API keys: several, named, kept as digests, compared in constant time."""

from __future__ import annotations

import re
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING

from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from gpu_server.errors import ConfigError
from web.settings import Settings, variable_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_ENTRY = re.compile(
    r"(?:(?!(?i:sha256):)(?P<name>[^:\s]+):)??(?:sha256:(?P<digest>[0-9a-fA-F]*)|(?P<key>[^:\s]+))"
)


class Keys:
    """The keys that open an app, by name; without any it is open to all."""

    def __init__(self, digests: dict[str, bytes]) -> None:
        self._digests = digests

    def __bool__(self) -> bool:
        return bool(self._digests)

    @classmethod
    def from_settings(cls, settings: Settings) -> Keys:
        """The keys of the variable and the file. Raises ConfigError, without the key, on one that cannot be read."""
        digests: dict[str, bytes] = {}
        variable = variable_of("api_keys")
        for i, entry in enumerate(filter(None, map(str.strip, settings.api_keys.split(",")))):
            _add(digests, entry, f"{variable}: entry {i + 1}")
        if settings.api_keys and not digests:
            raise ConfigError(f"{variable}: no keys in it")
        if settings.api_keys_file:
            for i, line in enumerate(_lines(Path(settings.api_keys_file))):
                if line and not line.startswith("#"):
                    _add(digests, line, f"{settings.api_keys_file}: line {i + 1}")
            if not digests:
                raise ConfigError(f"{settings.api_keys_file}: no keys in it")
        return cls(digests)

    def name_of(self, token: str) -> str | None:
        """The name of a key, None if it is none; takes equally long for every token of a length."""
        digest = sha256(token.encode("latin-1", "replace")).digest()
        found = None
        for name, known in self._digests.items():
            if compare_digest(digest, known):
                found = name
        return found

    def check(self, environ: WSGIEnvironment) -> None:
        """Let a request pass, with the name of its key as REMOTE_USER. Raises Unauthorized."""
        given = environ.get("HTTP_AUTHORIZATION", "")
        scheme, _, rest = given.partition(" ")
        # A header without a scheme is a bare key: some clients of Text-Embeddings-Inference send that.
        name = self.name_of(rest.strip() if scheme.lower() == "bearer" else given)
        if name is None:
            raise Unauthorized(
                "a valid API key is needed, sent as authorization: Bearer <key>",
                www_authenticate=WWWAuthenticate("bearer"),
            )
        environ["REMOTE_USER"] = name


def _add(digests: dict[str, bytes], entry: str, origin: str) -> None:
    match = _ENTRY.fullmatch(entry)
    if match is None or (match["digest"] is not None and len(match["digest"]) != 64):
        raise ConfigError(f"{origin} is not a key, name:key or name:sha256:<64 hex digits>")
    name = match["name"] or f"key-{len(digests) + 1}"
    if name in digests:
        raise ConfigError(f"{origin}: the name {name!r} is taken")
    digests[name] = (
        bytes.fromhex(match["digest"]) if match["digest"] else sha256(match["key"].encode()).digest()
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{variable_of('api_keys_file')}: {path}: {error}") from None
