"""Messages that every receiver must accept, with the header and the values they hold."""

from typing import Any

import msgpack

from golden.build import (
    ID,
    Tensor,
    Vector,
    bin_as_hex,
    blobs,
    dense,
    message,
    pack,
    ragged,
    reply,
    request,
    utf8,
)

DIGEST = "0123456789abcdef" * 4
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
EXTREMES: dict[str, list[Any]] = {
    "bool": [True, False, True],
    "i8": [-128, 0, 127],
    "i16": [-32768, 1, 32767],
    "i32": [-(2**31), 1, 2**31 - 1],
    "i64": [-(2**63), 1, 2**63 - 1],
    "u8": [0, 1, 255],
    "u16": [0, 256, 65535],
    "u32": [0, 65536, 2**32 - 1],
    "u64": [0, 2**32, 2**64 - 1],
    "f16": [-65504.0, 0.5, 5.960464477539063e-08],
    "bf16": [-1.0, 0.15625, 3.3895313892515355e38],
    "f32": [-0.5, 3.4028234663852886e38, 1.401298464324817e-45],
    "f64": [0.1, -1.7976931348623157e308, 5e-324],
}


def cases() -> list[Vector]:
    return [*_requests(), *_headers(), *_dense(), *_ragged(), *_strings(), *_replies(), *_error_replies()]


def _vector(
    name: str, clause: str, meaning: str, header: Vector, *tensors: Tensor, raw: bytes = b""
) -> Vector:
    frames = message(raw or header, *(frame for t in tensors for frame in t.frames))
    return {
        "name": name,
        "clause": clause,
        "meaning": meaning,
        "kind": "request" if "op" in header else "reply",
        "frames": [frame.hex() for frame in frames],
        "header": bin_as_hex(header),
        "tensors": {t.name: {"dtype": t.dtype, "shape": t.shape, "values": t.values} for t in tensors},
    }


def _requests() -> list[Vector]:
    text = utf8("text", ["hello world"])
    ids = ragged("input_ids", "i32", [[101, 7592, 102], [101, 102]])
    second = utf8("text_pair", ["and another"])
    types = ragged("token_type_ids", "i32", [[0, 0, 1], [0, 1]])
    pixels = dense("pixels", "u8", [[[0, 1], [2, 3]], [[4, 5], [6, 7]]])
    return [
        _vector("hello", "6.1", "Asks for the hello document.", request("hello")),
        _vector("status", "6.5", "Asks for the status document.", request("status")),
        _vector("metrics", "6.6", "Asks for the metrics text.", request("metrics")),
        _vector("tokenizer", "6.3", "Asks for a model's tokenizer.json.", request("tokenizer", model="bge")),
        _vector("cancel", "4.3", "Cancels the request of that id.", request("cancel", id=b"\x01", target=ID)),
        _vector("unknown-op", "6.7", "Well formed; the server does not offer it.", request("reload")),
        _vector("infer-text", "5.1", "One text, tokenised by the server.", request("infer", text), text),
        _vector("infer-text-pair", "5.1", "A pair of texts.", request("infer", text, second), text, second),
        _vector("infer-token-types", "5.4", "Ids and types.", request("infer", ids, types), ids, types),
        _vector("infer-ids", "5.2", "Ids made with that digest.", request("infer", ids, digest=DIGEST), ids),
        _vector(
            "infer-two-inputs", "3.3", "Two inputs, two items.", request("infer", ids, pixels), ids, pixels
        ),
        _vector("sixteen-inputs", "2.2", "As many inputs as fit.", *_many(16)),
    ]


def _headers() -> list[Vector]:
    scalars = {"flag": True, "count": -3, "scale": 0.5, "name": "é", "wide": 2**64 - 1, "empty": ""}
    minimal = request("hello")
    half = request("hello", params={"scale": 0.5})
    return [
        _vector("id-shortest", "2.2", "An id of 1 byte.", request("hello", id=b"\0")),
        _vector("id-longest", "2.2", "An id of 32 bytes.", request("hello", id=bytes(range(32)))),
        _vector("model-longest", "2.2", "A model name of 256 characters.", request("hello", model="é" * 256)),
        _vector("deadline-least", "2.2", "A deadline of 1 ms.", request("hello", deadline_ms=1)),
        _vector("deadline-most", "2.2", "A deadline of a day.", request("hello", deadline_ms=86_400_000)),
        *(
            _vector(f"priority-{name}", "2.2", f"Priority {level}, {name}.", request("hello", priority=level))
            for level, name in enumerate(("interactive", "normal", "bulk"))
        ),
        _vector("params", "2.2", "Parameters of every scalar type.", request("hello", params=scalars)),
        _vector(
            "params-most", "2.2", "16 parameters.", request("hello", params={f"p{i}": i for i in range(16)})
        ),
        _vector("params-none", "2.2", "An empty map of parameters.", request("hello", params={})),
        _vector("traceparent", "2.4", "A W3C trace context.", request("hello", traceparent=TRACE)),
        _vector("more-false", "2.2", "more may be sent as false.", request("hello", more=False)),
        _vector("keys-any-order", "2.1", "Keys come in any order.", dict(reversed(minimal.items()))),
        _vector("wide-integers", "2.1", "Wider forms than needed.", minimal, raw=_wide(minimal)),
        _vector("float32-param", "2.1", "A 32-bit float.", half, raw=_single_floats(half)),
        _vector("header-longest", "2.1", "A header of exactly 4096 bytes.", _header_of(4096)),
    ]


def _dense() -> list[Vector]:
    tensors = [dense("x", dtype, [[value] for value in values]) for dtype, values in EXTREMES.items()]
    deep = dense("x", "i8", [[[[[[[[1, 2]]]]]]]])
    hollow = Tensor("x", "f32", [2, 0], [[], []], [b""])
    return [
        *(
            _vector(f"dense-{t.dtype}", "3.2", f"Three {t.dtype} values.", request("infer", t), t)
            for t in tensors
        ),
        _vector("dense-8-dimensions", "3.1", "Eight dimensions.", request("infer", deep), deep),
        _vector("dense-zero-size", "3.4", "Items without elements.", request("infer", hollow), hollow),
        _vector("dense-flat", "3.4", "One number an item.", request("infer", FLAT), FLAT),
    ]


def _ragged() -> list[Vector]:
    empty_rows = ragged("x", "i32", [[], [1], []])
    pairs = ragged("x", "f32", [[[1.0, 2.0]], [], [[3.0, 4.0], [5.0, 6.0]]], (2,))
    flags = ragged("x", "bool", [[True], [False, True]])
    halves = ragged("x", "bf16", [[1.5], [-2.0, 0.25]])
    return [
        _vector("ragged-empty-rows", "3.5", "Rows may be empty.", request("infer", empty_rows), empty_rows),
        _vector("ragged-trailing", "3.5", "Offsets count rows of two.", request("infer", pairs), pairs),
        _vector("ragged-bool", "3.5", "Ragged flags.", request("infer", flags), flags),
        _vector("ragged-bf16", "3.5", "Ragged bf16.", request("infer", halves), halves),
    ]


def _strings() -> list[Vector]:
    texts = utf8("text", ["", "naïve", "日本語", "👩‍🚀🚀", "\0", ""])
    raw = blobs("image", [b"\xff\xd8\xff", b"", b"\x00\x80"])
    long = utf8("text", [str(i) for i in range(100)])
    return [
        _vector("utf8", "3.6", "Text of 1- to 4-byte code points.", request("infer", texts), texts),
        _vector("bytes", "3.6", "Byte strings need not be UTF-8.", request("infer", raw), raw),
        _vector("utf8-100-items", "3.6", "A hundred strings.", request("infer", long), long),
    ]


def _replies() -> list[Vector]:
    document = utf8("document", ['{"server":"gpu-server"}'])
    tokenizer = blobs("tokenizer", [b'{"version":"1.0"}'])
    metrics = utf8("metrics", ["# TYPE up gauge\nup 1\n"])
    vectors = dense("embedding", "f32", [[0.5, -0.5], [1.0, 0.0]])
    scores = ragged("scores", "f16", [[1.0], []])
    indices = ragged("sparse_indices", "i32", [[3, 96], []])
    weights = ragged("sparse_values", "f32", [[0.5, 1.25], []])
    logits = ragged("logits", "f32", [[[0.5, -0.5], [1.0, 0.0]]], (2,))
    timing = {"queue_us": 12, "compute_us": 3456, "total_us": 4000, "batch_items": 32, "batch_tokens": 2**31}
    failed = [{"item": 1, "code": "model_failed", "message": "bad image"}]
    full = reply(vectors, scores, model="bge", version="5f", timing=timing, item_errors=failed, more=False)
    none = Tensor("embedding", "f32", [0, 2], [], [b""])
    return [
        _vector("reply-empty", "6.4", "Done; nothing to say.", reply()),
        _vector("reply-document", "6.1", "A JSON document.", reply(document), document),
        _vector("reply-tokenizer", "6.3", "A tokenizer.json.", reply(tokenizer, model="bge"), tokenizer),
        _vector("reply-metrics", "6.6", "Prometheus text.", reply(metrics), metrics),
        _vector("reply-infer", "2.3", "Outputs, timing and a failed item.", full, vectors, scores),
        _vector("reply-sparse", "9.1", "What is not 0.", reply(indices, weights), indices, weights),
        _vector("reply-token-logits", "9.1", "Logits of each token.", reply(logits), logits),
        _vector("reply-timing-partly", "2.3", "Timing may leave keys out.", reply(timing={"queue_us": 1})),
        _vector("reply-no-items", "3.4", "An output of no items.", reply(none), none),
    ]


def _error_replies() -> list[Vector]:
    details = {
        "limit": "max_items",
        "most": 2048,
        "share": 0.5,
        "final": True,
        "models": ["a", "b"],
        "none": [],
    }
    refused = {"code": "too_large", "message": "2049 items", "retryable": False, "details": details}
    loading = {"code": "model_loading", "message": "not ready", "retryable": True}
    return [
        _vector("error", "2.3", "An error without details.", reply(error=loading)),
        _vector("error-details", "2.3", "Details of every type.", reply(error=refused)),
        _vector("error-no-id", "1.5", "The request's id was unreadable.", reply(id=b"", error=loading)),
    ]


FLAT = dense("x", "f32", [0.25, -0.25, 0.0])


def _many(count: int) -> tuple[Any, ...]:
    tensors = [dense(f"x{i}", "u8", [i]) for i in range(count)]
    return request("infer", *tensors), *tensors


def _wide(header: Vector) -> bytes:
    """The same map in longer forms: map32, str8 keys, bin32 id, 64-bit int."""
    identifier = b"\xc6" + len(header["id"]).to_bytes(4) + header["id"]
    op = b"\xda" + len(header["op"]).to_bytes(2) + header["op"].encode()
    fields = [(b"v", b"\xcf" + (1).to_bytes(8)), (b"id", identifier), (b"op", op)]
    packed = b"".join(b"\xd9" + len(k).to_bytes(1) + k + value for k, value in fields)
    return b"\xdf" + len(fields).to_bytes(4) + packed


def _single_floats(header: Vector) -> bytes:
    packed: bytes = msgpack.Packer(use_single_float=True).pack(header)
    return packed


def _header_of(size: int) -> Vector:
    filler = request("hello", params={"x": "y" * 4000})
    missing = size - len(pack(filler))
    return request("hello", params={"x": "y" * (4000 + missing)})
