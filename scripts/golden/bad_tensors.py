"""Descriptors and data frames that a receiver must refuse."""

from typing import Any

from golden.build import (
    Tensor,
    Vector,
    blobs,
    dense,
    message,
    numbers,
    offsets,
    ragged,
    refusal,
    request,
    utf8,
)


def cases() -> list[Vector]:
    return [*_descriptors(), *_shapes(), *_frame_counts(), *_dense(), *_offsets(), *_strings(), *_items()]


def _descriptors() -> list[Vector]:
    good = {"name": "x", "dtype": "u8", "shape": [1]}
    bad: dict[str, tuple[str, dict[str, Any]]] = {
        "name-missing": ("No name.", {"name": ...}),
        "name-empty": ("An empty name.", {"name": ""}),
        "name-long": ("A name of 65 characters.", {"name": "x" * 65}),
        "name-bin": ("A name as bin.", {"name": b"x"}),
        "dtype-missing": ("No dtype.", {"dtype": ...}),
        "dtype-unknown": ("A dtype not in the list.", {"dtype": "c64"}),
        "dtype-numpy": ("A dtype as numpy writes it.", {"dtype": "|u1"}),
        "dtype-object": ("A dtype that would need pickle.", {"dtype": "object"}),
        "shape-missing": ("No shape.", {"shape": ...}),
        "shape-empty": ("No dimensions.", {"shape": []}),
        "shape-9": ("Nine dimensions.", {"shape": [1] * 9}),
        "shape-int": ("A shape that is an int.", {"shape": 1}),
        "shape-float": ("A dimension as float.", {"shape": [1.0]}),
        "shape-bool": ("A dimension as bool.", {"shape": [True]}),
        "shape-nil": ("A dimension that is nil.", {"shape": [None]}),
        "key-unknown": ("A key that is not in the table.", {"offset": 0}),
    }
    return [
        refusal(f"descriptor-{name}", "3.1", meaning, _described(_without({**good, **change}), b"\0"))
        for name, (meaning, change) in bad.items()
    ]


def _without(value: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in value.items() if v is not ...}


def _described(descriptor: dict[str, Any], *frames: bytes) -> list[bytes]:
    return message(request("infer", inputs=[descriptor]), *frames)


def _shapes() -> list[Vector]:
    huge = 1 << 40
    none = offsets(0, 0)
    bad: dict[str, tuple[str, str, str, list[int], list[bytes]]] = {
        "dense-negative-items": ("3.4", "−1 items.", "u8", [-1], [b""]),
        "dense-negative-third": ("3.4", "−1 in third place.", "u8", [1, 1, -1], [b"\0"]),
        "dense-minus-two": ("3.4", "A dimension of −2.", "u8", [1, -2], [b""]),
        "ragged-negative-items": ("3.5", "−1 items.", "i32", [-1, -1], [b"", none]),
        "ragged-trailing-zero": ("3.5", "Rows without elements.", "i32", [1, -1, 0], [b"", none]),
        "ragged-trailing-negative": ("3.5", "Ragged twice.", "i32", [1, -1, -1], [b"", none]),
        "utf8-two-dimensions": ("3.6", "Strings have one dimension.", "utf8", [1, 1], [b"a", offsets(0, 1)]),
        "utf8-ragged": ("3.6", "Strings have one dimension.", "utf8", [1, -1], [b"a", offsets(0, 1)]),
        "utf8-negative-items": ("3.6", "−1 items.", "utf8", [-1], [b"", b""]),
        "bytes-two-dimensions": ("3.6", "Byte strings too.", "bytes", [1, 1], [b"a", offsets(0, 1)]),
        "dimension-too-large": ("3.1", "More than 2^40.", "u8", [1, huge + 1, 0], [b""]),
        "dense-too-large": ("3.1", "2^80 elements, times 0.", "u8", [1, huge, huge, 0], [b""]),
        "ragged-too-large": ("3.1", "Rows of 2^80 elements.", "u8", [1, -1, huge, huge], [b"", none]),
        "dense-wraps-64-bits": ("3.1", "2^64 elements.", "u8", [1, 1 << 32, 1 << 32], [b""]),
    }
    return [
        refusal(f"shape-{name}", clause, meaning, _described({"name": "x", "dtype": d, "shape": s}, *frames))
        for name, (clause, meaning, d, s, frames) in bad.items()
    ]


def _frame_counts() -> list[Vector]:
    x, ids, text = dense("x", "u8", [1]), ragged("ids", "i32", [[1]]), utf8("text", ["a"])
    many = [dense(f"x{i}", "u8", [i]) for i in range(17)]
    return [
        refusal("inputs-17", "2.2", "17 inputs.", _infer(many)),
        refusal("frame-missing", "3.7", "No frame for the input.", _infer([x], [])),
        refusal("frame-missing-second", "3.7", "No frame for the second.", _infer([x, ids], x.frames)),
        refusal("offsets-missing", "3.7", "No offsets frame.", _infer([text], text.frames[:1])),
        refusal("frame-extra", "3.7", "A frame that nothing describes.", _infer([x], [*x.frames, b""])),
        refusal(
            "frame-extra-no-inputs", "3.7", "A frame after a plain hello.", message(request("hello"), b"")
        ),
        refusal("names-equal", "3.1", "Two inputs of one name.", _infer([x, x])),
    ]


def _infer(tensors: list[Tensor], frames: list[bytes] | None = None) -> list[bytes]:
    sent = [frame for t in tensors for frame in t.frames] if frames is None else frames
    return message(request("infer", *tensors), *sent)


def _dense() -> list[Vector]:
    x = dense("x", "f32", [[1.0, 2.0], [3.0, 4.0]])
    (data,) = x.frames
    return [
        refusal("dense-short", "3.4", "One byte too few.", _infer([x], [data[:-1]])),
        refusal("dense-long", "3.4", "One byte too many.", _infer([x], [data + b"\0"])),
        refusal("dense-empty", "3.4", "No bytes.", _infer([x], [b""])),
        refusal(
            "bool-2", "3.2", "A bool of 2.", _described({"name": "x", "dtype": "bool", "shape": [2]}, b"\1\2")
        ),
        refusal(
            "bool-ragged-255",
            "3.2",
            "A bool of 255.",
            _infer([ragged("x", "bool", [[True]])], [b"\xff", offsets(0, 1)]),
        ),
    ]


def _offsets() -> list[Vector]:
    """Offsets that do not cut three rows out of four elements."""
    data = numbers("i32", [1, 2, 3, 4])
    bad = {
        "not-from-0": ("The first is 1.", offsets(1, 2, 3, 4)),
        "from-negative": ("The first is −1.", offsets(-1, 2, 3, 4)),
        "falling": ("One is less than the one before.", offsets(0, 3, 2, 4)),
        "beyond": ("One is beyond the end, then falls back.", offsets(0, 9, 9, 4)),
        "last-beyond": ("The last is beyond the data.", offsets(0, 1, 2, 5)),
        "last-short": ("The last leaves an element out.", offsets(0, 1, 2, 3)),
        "one-too-few": ("No last offset.", offsets(0, 1, 4)),
        "one-too-many": ("Five offsets.", offsets(0, 1, 2, 4, 4)),
        "not-whole": ("15 bytes.", offsets(0, 1, 2, 4)[:-1]),
        "empty": ("No offsets.", b""),
        "int64": ("64-bit offsets.", numbers("i64", [0, 1, 2, 4])),
        "big-endian": ("Big-endian offsets.", b"".join(i.to_bytes(4) for i in (0, 1, 2, 4))),
        "least-int": ("The least int32.", offsets(0, 1, -(2**31), 4)),
    }
    x = {"name": "x", "dtype": "i32", "shape": [3, -1]}
    pairs = {"name": "x", "dtype": "i32", "shape": [2, -1, 2]}
    rows = {"name": "x", "dtype": "u8", "shape": [100, -1]}
    long = offsets(*range(50), 40, *range(51, 101))
    return [
        *(refusal(f"offsets-{k}", "3.5", why, _described(x, data, raw)) for k, (why, raw) in bad.items()),
        refusal(
            "offsets-in-elements", "3.5", "Not counted in rows.", _described(pairs, data, offsets(0, 2, 4))
        ),
        refusal("offsets-half-row", "3.5", "Half a row.", _described(pairs, data[:-4], offsets(0, 1, 2))),
        refusal("offsets-100-falling", "3.5", "One of 101 falls.", _described(rows, bytes(100), long)),
        refusal(
            "offsets-bytes-beyond", "3.6", "Beyond.", _infer([blobs("b", [b"ab"])], [b"ab", offsets(0, 3)])
        ),
    ]


def _strings() -> list[Vector]:
    bad = {
        "lone-continuation": ("A continuation byte alone.", [b"\x80"]),
        "overlong": ("A slash in two bytes.", [b"\xc0\xaf"]),
        "surrogate": ("Half a surrogate pair.", [b"\xed\xa0\x80"]),
        "too-high": ("Above U+10FFFF.", [b"\xf4\x90\x80\x80"]),
        "cut": ("A character without its end.", [b"ok", b"\xe2\x82"]),
        "split": ("One character over two strings.", [b"a\xc3", b"\xa9b"]),
    }
    return [
        refusal(f"utf8-{name}", "3.6", meaning, _infer([blobs("text", values)._replace(dtype="utf8")]))
        for name, (meaning, values) in bad.items()
    ]


def _items() -> list[Vector]:
    two, three = dense("a", "u8", [1, 2]), utf8("b", ["x", "y", "z"])
    none = Tensor("x", "u8", [0], [], [b""])
    no_rows = Tensor("x", "i32", [0, -1], [], [b"", offsets(0)])
    no_text = Tensor("x", "utf8", [0], [], [b"", offsets(0)])
    limits: dict[str, Any] = {"max_items": 2, "code": "too_large"}
    return [
        refusal("items-differ", "3.3", "Two items and three.", _infer([two, three])),
        refusal("items-none-dense", "3.3", "No items.", _infer([none])),
        refusal("items-none-ragged", "3.3", "No items.", _infer([no_rows])),
        refusal("items-none-utf8", "3.3", "No items.", _infer([no_text])),
        refusal("items-too-many", "3.3", "3 items where max_items is 2.", _infer([three]), **limits),
        refusal(
            "items-too-many-claimed",
            "3.3",
            "The claim alone is too large.",
            _infer([three], [b"", b""]),
            **limits,
        ),
    ]
