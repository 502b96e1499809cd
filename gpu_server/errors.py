"""The exception tree; codes, HTTP statuses and retryability equal proto/errors.json.

GPUServerError
├─ ConfigError                    a setting is wrong (exit 78)
│  ├─ EndpointError               the socket path cannot be used (exit 76)
│  ├─ ModelFolderMissing          a named model folder is not there (exit 66)
│  ├─ ModelClassError             `module:Class` cannot be found (exit 65)
│  └─ MissingDependency           an optional package is not installed (exit 71)
├─ AlreadyRunning                 another daemon holds the endpoint (exit 75)
├─ EngineStartFailed              the engine could not load or warm up (exit 70)
├─ DeviceLost                     the engine's CUDA context is unusable (its exit: 86)
├─ ProtocolError                  a peer sent something that is not the protocol
├─ TorchGuardError                torch was found in a web worker
└─ RemoteError                    an error reply, or its client-made twin
   ├─ InvalidRequest 400          UnsupportedVersion 400    ModelNotFound 404
   ├─ StaleTokenizer 409          Conflict 409              TooLarge 413
   ├─ UnsupportedOperation 424    LoadFailed 500
   ├─ Overloaded 429              Cancelled 499
   ├─ ModelFailed 500             InternalError 500
   ├─ ModelLoading 503            ShuttingDown 503          EngineCrashed 503
   ├─ OutOfMemory 503             Unavailable 503 (made by the client)
   │                              └─ EndpointForbidden (no permission, or not the keys, exit 77)
   └─ DeadlineExceeded 504
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class GPUServerError(Exception):
    """Base of everything this package raises on purpose; `exit_code` is what the command line exits with."""

    exit_code: int = 1


class ConfigError(GPUServerError):
    """A setting is wrong; the message names it and says what would be right."""

    exit_code = 78


class EndpointError(ConfigError):
    """The endpoint cannot be used: not ipc/tcp, over-long path, or a folder that cannot be made."""

    exit_code = 76


class ModelFolderMissing(ConfigError):
    """A model was named by folder and the folder, or a file it must hold, is not there."""

    exit_code = 66


class ModelClassError(ConfigError):
    """A model was named as `module:Class` and the module or the class cannot be found or used."""

    exit_code = 65


class MissingDependency(ConfigError):
    """A package that this part needs is not installed; the message has the install command."""

    exit_code = 71


class AlreadyRunning(GPUServerError):
    """Another daemon holds the endpoint's lock."""

    exit_code = 75


class EngineStartFailed(GPUServerError):
    """The engine process could not load or warm up its models; `exit_code` is that of the cause, if it has one."""

    exit_code = 70

    def __init__(self, message: str, exit_code: int = exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DeviceLost(GPUServerError):
    """The engine's device is unusable to its process, which must end; never leaves the engine."""

    exit_code = 86


class ProtocolError(GPUServerError):
    """A message does not follow proto/PROTOCOL.md; `request_id` is empty when it could not be read.

    `code` and `details` are those of the error reply that the message deserves.
    """

    def __init__(
        self,
        message: str,
        request_id: bytes = b"",
        code: str = "invalid_request",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.code = code
        self.details: dict[str, Any] = dict(details or {})


class TorchGuardError(GPUServerError, ImportError):
    """A GPU framework was imported, or already present, in a process that must stay free of it."""


class RemoteError(GPUServerError):
    """An error reply: `code`, `message`, `retryable` and `details` as on the wire."""

    code: ClassVar[str] = ""
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})


class InvalidRequest(RemoteError):
    """The message or its arguments are malformed."""

    code, http_status, exit_code = "invalid_request", 400, 64


class UnsupportedVersion(RemoteError):
    """The peer does not speak this protocol version."""

    code, http_status, exit_code = "unsupported_version", 400, 79


class UnsupportedOperation(RemoteError):
    """The operation is unknown, or the model does not offer it."""

    code, http_status, exit_code = "unsupported_operation", 424, 67


class ModelNotFound(RemoteError):
    """No model of that name is served."""

    code, http_status, exit_code = "model_not_found", 404, 68


class StaleTokenizer(RemoteError):
    """Token ids were made with another tokenizer than the model's."""

    code, http_status, retryable = "stale_tokenizer", 409, True


class Conflict(RemoteError):
    """Another change of the served models is under way."""

    code, http_status, retryable, exit_code = "conflict", 409, True, 73


class TooLarge(RemoteError):
    """The request exceeds an announced limit, or its answer what the server lets gather."""

    code, http_status = "too_large", 413


class Overloaded(RemoteError):
    """Refused at admission; `retry_after_s` says when to try again."""

    code, http_status, retryable = "overloaded", 429, True

    @property
    def retry_after_s(self) -> float:
        """Seconds to wait before trying again."""
        return float(self.details.get("retry_after_ms", 1000)) / 1e3


class Cancelled(RemoteError):
    """The caller cancelled the request."""

    code, http_status = "cancelled", 499


class ModelFailed(RemoteError):
    """The model's forward raised, or its output does not match its input."""

    code, http_status = "model_failed", 500


class LoadFailed(RemoteError):
    """A change of the served models failed; those from before go on being served."""

    code, http_status, exit_code = "load_failed", 500, 74


class InternalError(RemoteError):
    """A defect in the server."""

    code, http_status = "internal", 500


class ModelLoading(RemoteError):
    """The model is not ready yet."""

    code, http_status, retryable, exit_code = "model_loading", 503, True, 3


class ShuttingDown(RemoteError):
    """The server drains or stops."""

    code, http_status, retryable = "shutting_down", 503, True


class EngineCrashed(RemoteError):
    """The engine process died while it ran the request."""

    code, http_status, retryable = "engine_crashed", 503, True


class OutOfMemory(RemoteError):
    """The device ran out of memory on this request alone."""

    code, http_status = "out_of_memory", 503


class Unavailable(RemoteError):
    """No daemon answers at the endpoint, or the connection was lost."""

    code, http_status, retryable, exit_code = "unavailable", 503, True, 69


class EndpointForbidden(Unavailable):
    """The socket exists but this user may not open it, or the daemon wants other keys than this client has."""

    exit_code = 77


class DeadlineExceeded(RemoteError):
    """The deadline passed before the answer was ready."""

    code, http_status = "deadline_exceeded", 504


def _remote_classes() -> dict[str, type[RemoteError]]:
    return {c.code: c for c in RemoteError.__subclasses__()}


def from_wire(code: str, message: str, details: Mapping[str, Any] | None = None) -> RemoteError:
    """Make the exception for an error reply; a code from a newer server becomes a plain `InternalError`."""
    return _remote_classes().get(code, InternalError)(message, details)
