"""Replies that a client must refuse."""

from typing import Any

from golden.build import ID, Vector, dense, message, refusal, reply


def cases() -> list[Vector]:
    return [*_headers(), *_frames()]


def _headers() -> list[Vector]:
    error = {"code": "internal", "message": "no", "retryable": False}
    item = {"item": 0, "code": "model_failed", "message": "no"}
    bad: dict[str, tuple[str, str, dict[str, Any]]] = {
        "version-2": ("2.5", "Version 2.", {"v": 2}),
        "id-missing": ("2.3", "No id.", {"id": None}),
        "id-long": ("2.3", "An id of 33 bytes.", {"id": bytes(33)}),
        "more-true": ("2.3", "Streaming is reserved.", {"more": True}),
        "key-unknown": ("2.1", "A key that is not in the table.", {"op": "infer"}),
        "error-string": ("2.3", "An error that is no map.", {"error": "no"}),
        "error-no-code": (
            "2.3",
            "An error without a code.",
            {"error": {k: error[k] for k in list(error)[1:]}},
        ),
        "error-unknown-key": ("2.3", "An unknown key.", {"error": {**error, "trace": "x"}}),
        "error-nested-details": ("2.3", "Nested details.", {"error": {**error, "details": {"a": {"b": 1}}}}),
        "error-number-list": ("2.3", "A list of numbers.", {"error": {**error, "details": {"a": [1]}}}),
        "item-error-negative": ("2.3", "Item −1.", {"item_errors": [{**item, "item": -1}]}),
        "item-error-no-code": ("2.3", "No code.", {"item_errors": [{"item": 0, "message": "no"}]}),
        "timing-negative": ("2.3", "Time runs backwards.", {"timing": {"queue_us": -1}}),
        "timing-float": ("2.3", "Microseconds are ints.", {"timing": {"queue_us": 0.5}}),
        "timing-unknown-key": ("2.3", "An unknown key.", {"timing": {"network_us": 1}}),
    }
    codes = {"version-2": "unsupported_version"}
    return [
        _reply(name, clause, meaning, message(reply(**keys)), codes.get(name))
        for name, (clause, meaning, keys) in bad.items()
    ]


def _frames() -> list[Vector]:
    short = message(reply(dense("x", "u8", [1])), b"")
    return [
        _reply("frame-extra", "3.7", "A frame that nothing describes.", message(reply(), b"")),
        _reply("dense-short", "3.4", "No bytes for one.", short),
        _reply("no-header", "1.2", "Only the delimiter.", [b""]),
    ]


def _reply(name: str, clause: str, meaning: str, frames: list[bytes], code: str | None = None) -> Vector:
    readable = name not in {"id-missing", "id-long", "no-header"}
    identifier = ID if readable else b""
    return refusal(
        f"reply-{name}", clause, meaning, frames, identifier, kind="reply", code=code or "invalid_request"
    )
