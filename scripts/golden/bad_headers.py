"""Request headers, and messages around them, that a receiver must refuse."""

from typing import Any

import msgpack

from golden.build import ID, Vector, message, pack, refusal, request, utf8

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HELLO = request("hello")
# A hello header without its first byte, to follow with a fourth key that is malformed.
START = pack(HELLO)[1:]


def cases() -> list[Vector]:
    return [*_framing(), *_packing(), *_bombs(), *_versions(), *_identities(), *_types(), *_ranges()]


def _framing() -> list[Vector]:
    packed = pack(HELLO)
    large = request("hello", params={"x": "y" * 4096})
    return [
        refusal("no-frames", "1.2", "No frame at all.", [], b""),
        refusal("no-header", "1.2", "Only the delimiter.", [b""], b""),
        refusal("no-delimiter", "1.2", "The header comes first.", [packed], b""),
        refusal("delimiter-not-empty", "1.2", "The delimiter has a byte.", [b"\0", packed], b""),
        refusal("header-too-long", "2.1", "More than 4096 bytes.", message(large), b""),
    ]


def _packing() -> list[Vector]:
    """Headers that are not one whole map with string keys: no id can be read (clause 1.5)."""
    bad = {
        "header-empty": ("No bytes.", b""),
        "header-nil": ("nil.", b"\xc0"),
        "header-array": ("An array.", pack([1, ID, "hello"])),
        "header-string": ("A string.", pack("hello")),
        "header-never-used-byte": ("0xc1, which MessagePack never uses.", b"\xc1"),
        "header-truncated": ("The last byte is missing.", pack(HELLO)[:-1]),
        "header-cut-in-id": ("Ends inside the id.", pack(HELLO)[:12]),
        "header-trailing-byte": ("One byte too many.", pack(HELLO) + b"\xc0"),
        "header-two-maps": ("Two maps.", pack(HELLO) * 2),
        "key-int": ("A key that is no string.", b"\x84" + START + b"\x01\x01"),
        "key-bin": ("A key as bin.", b"\x84" + START + b"\xc4\x05model\xa1m"),
        "value-never-used-byte": ("0xc1 as a value.", b"\x84" + START + b"\xa5model\xc1"),
    }
    return [refusal(name, "2.1", meaning, message(raw), b"") for name, (meaning, raw) in bad.items()]


def _bombs() -> list[Vector]:
    """Small headers that claim to be large, or nest deeply; nothing may be allocated for the claim."""
    four_gib = b"\xff\xff\xff\xff"
    claims = {
        "array32": b"\xdd" + four_gib,
        "map32": b"\xdf" + four_gib,
        "str32": b"\xdb" + four_gib,
        "bin32": b"\xc6" + four_gib,
        "ext32": b"\xc9" + four_gib + b"\x01",
    }
    keys = {"v": b"\xa1v", "inputs": b"\xa6inputs", "params": b"\xa6params", "unknown": b"\xa1z"}
    nested = b"\x91" * 4000
    return [
        *(refusal(f"bomb-{k}", "2.1", f"A {k} of 4 Gi.", message(raw), b"") for k, raw in claims.items()),
        *(
            refusal(f"bomb-{name}-{kind}", "2.1", f"{name}: a {kind} of 4 Gi.", _start(key + raw), b"")
            for name, key in keys.items()
            for kind, raw in claims.items()
        ),
        *(
            refusal(f"deep-{name}", "2.1", f"{name}: 4000 arrays, never closed.", _start(key + nested), b"")
            for name, key in keys.items()
        ),
        refusal("bomb-map-of-maps", "2.1", "Maps in maps of 64 Ki.", message(b"\xde\xff\xff" * 1300), b""),
    ]


def _start(tail: bytes) -> list[bytes]:
    return message(b"\x84" + START + tail)


def _versions() -> list[Vector]:
    def vector(name: str, meaning: str, version: Any, code: str) -> Vector:
        header = {**HELLO, "v": version}
        return refusal(
            name, "2.5", meaning, message({k: v for k, v in header.items() if v is not None}), code=code
        )

    unknown = "unsupported_version"
    return [
        vector("version-2", "Version 2.", 2, unknown),
        vector("version-0", "Version 0.", 0, unknown),
        vector("version-negative", "Version −1.", -1, unknown),
        vector("version-most", "Version 2^64 − 1.", 2**64 - 1, unknown),
        refusal(
            "version-2-other-keys", "2.5", "Version 2, whose other keys mean nothing here.",
            message({"v": 2, "id": ID, "operation": [1]}), code=unknown,
        ),
        vector("version-missing", "No version.", None, "invalid_request"),
        vector("version-string", "A string.", "1", "invalid_request"),
        vector("version-float", "A float.", 1.0, "invalid_request"),
        vector("version-bool", "A bool.", True, "invalid_request"),
        vector("version-array", "An array.", [1], "invalid_request"),
    ]  # fmt: skip


def _identities() -> list[Vector]:
    bad = {
        "id-missing": ("No id.", None),
        "id-empty": ("An id of no bytes.", b""),
        "id-33-bytes": ("An id of 33 bytes.", bytes(33)),
        "id-string": ("An id as str.", "abc"),
        "id-int": ("An id as int.", 7),
        "id-ext": ("An id as an extension type.", msgpack.ExtType(1, b"abc")),
    }
    return [
        refusal(name, "2.2", meaning, message(request("hello", id=value)), b"")
        for name, (meaning, value) in bad.items()
    ]


def _types() -> list[Vector]:
    """Values of the wrong type, by key; `nil` and extension types are no values at all."""
    text = utf8("text", ["a"])
    wrong: dict[str, tuple[Any, ...]] = {
        "op": (b"hello", 1),
        "model": (b"m", 1, ["m"]),
        "deadline_ms": (1.0, "5", True),
        "priority": (1.0, "1", False),
        "params": ([], "x", [["a", 1]]),
        "digest": (bytes(32), 1),
        "traceparent": (b"x", 1),
        "target": ("abc", 1),
        "inputs": ({}, "text", [1], [[text.descriptor]]),
        "more": (0, "false"),
    }
    pairs = [(k, v) for k, values in wrong.items() for v in (*values, msgpack.ExtType(5, b"x"))]
    vectors = [
        refusal(f"type-{key}-{i}", "2.2", f"{key}: {_kind(value)}.", message({**HELLO, key: value}))
        for i, (key, value) in enumerate(pairs)
    ]
    nils = [
        refusal(f"nil-{key}", "2.1", f"{key}: nil is not a value.", message({**HELLO, key: None}))
        for key in wrong
    ]
    timestamp = message({**HELLO, "model": msgpack.Timestamp(1)})
    return [*vectors, *nils, refusal("timestamp", "2.1", "A timestamp is an extension type.", timestamp)]


def _kind(value: Any) -> str:
    return "an extension type" if isinstance(value, msgpack.ExtType) else repr(value)


def _ranges() -> list[Vector]:
    """Values of the right type that are not allowed."""
    bad: dict[str, tuple[str, str, dict[str, Any]]] = {
        "unknown-key": ("2.1", "A key that is not in the table.", {"colour": "red"}),
        "reply-key": ("2.1", "A key of the reply header.", {"outputs": []}),
        "op-missing": ("2.2", "No operation.", {"op": None}),
        "op-empty": ("2.2", "An operation without a name.", {"op": ""}),
        "op-long": ("2.2", "An operation of 33 characters.", {"op": "o" * 33}),
        "model-empty": ("2.2", "A model without a name.", {"model": ""}),
        "model-long": ("2.2", "A model name of 257 characters.", {"model": "m" * 257}),
        "deadline-zero": ("2.2", "A deadline of 0 ms.", {"deadline_ms": 0}),
        "deadline-negative": ("2.2", "A deadline in the past.", {"deadline_ms": -1}),
        "deadline-long": ("2.2", "A deadline past a day.", {"deadline_ms": 86_400_001}),
        "priority-3": ("2.2", "Priority 3.", {"priority": 3}),
        "priority-negative": ("2.2", "Priority −1.", {"priority": -1}),
        "params-17": ("2.2", "17 parameters.", {"params": {f"p{i}": i for i in range(17)}}),
        "params-map": ("2.2", "A parameter that is a map.", {"params": {"a": {"b": 1}}}),
        "params-array": ("2.2", "A parameter that is an array.", {"params": {"a": [1]}}),
        "params-bin": ("2.2", "A parameter that is bin.", {"params": {"a": b"x"}}),
        "params-nil": ("2.1", "A parameter that is nil.", {"params": {"a": None}}),
        "params-ext": ("2.1", "An extension type.", {"params": {"a": msgpack.ExtType(5, b"x")}}),
        "params-int-key": ("2.2", "A parameter named by an int.", {"params": {1: 1}}),
        "digest-short": ("2.2", "63 digits.", {"digest": "a" * 63}),
        "digest-upper": ("2.2", "Upper-case digits.", {"digest": "A" * 64}),
        "digest-newline": ("2.2", "A line end after 64 digits.", {"digest": "a" * 64 + "\n"}),
        "traceparent-short": ("2.4", "The flags are missing.", {"traceparent": TRACE[:-3]}),
        "traceparent-upper": ("2.4", "Upper-case digits.", {"traceparent": TRACE.upper()}),
        "traceparent-newline": ("2.4", "A line end at the end.", {"traceparent": TRACE + "\n"}),
        "target-empty": ("2.2", "A target of no bytes.", {"target": b""}),
        "target-long": ("2.2", "A target of 33 bytes.", {"target": bytes(33)}),
        "more-true": ("2.2", "Streaming is reserved.", {"more": True}),
    }
    vectors = [
        refusal(name, clause, meaning, message(request(**{"op": "hello", **keys})))
        for name, (clause, meaning, keys) in bad.items()
    ]
    lone = b"\x84" + START + b"\xa5model\xa3\xed\xa0\x80"
    return [*vectors, refusal("str-surrogate", "2.1", "A str that is not UTF-8.", message(lone))]
