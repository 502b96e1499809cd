"""Whole messages: what encoding refuses or cuts, and what decoding keeps of its frames."""

from typing import Any

import msgpack
import numpy as np
import pytest

from gpu_server.errors import ProtocolError
from gpu_server.wire import (
    MAX_BATCH_HEADER_BYTES,
    MAX_REPLY_HEADER_BYTES,
    MAX_REQUEST_HEADER_BYTES,
    ErrorBody,
    ItemError,
    Limits,
    ReplyHeader,
    RequestHeader,
    Tensor,
    decode_reply,
    decode_request,
    document,
    encode_reply,
    encode_request,
    error_reply,
    refuse_cut,
)


def joined(frames: list[Any]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_frames_may_be_any_buffer_and_are_not_copied(wrap: Any) -> None:
    tensors = {
        "x": Tensor.from_numpy(np.arange(6, dtype="f4").reshape(2, 3)),
        "text": Tensor.from_strings(["a", "é"]),
    }
    frames = [wrap(f) for f in joined(encode_request(RequestHeader(v=1, id=b"i", op="infer"), tensors))]
    header, inputs = decode_request(frames, Limits())
    assert (header.op, inputs["text"].strings()) == ("infer", ["a", "é"])
    assert inputs["x"].to_numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert inputs["x"].data is frames[2]


def test_a_slice_can_be_sent_as_it_is() -> None:
    tensor = Tensor.from_rows([[1, 2], [3], [4, 5, 6]]).slice(1, 3)
    frames = encode_request(RequestHeader(v=1, id=b"i", op="infer"), {"ids": tensor})
    _, inputs = decode_request(joined(frames), Limits())
    assert [row.tolist() for row in inputs["ids"].rows()] == [[3], [4, 5, 6]]


def test_request_header_over_the_limit_is_not_sent() -> None:
    header = RequestHeader(v=1, id=b"i", op="infer", params={"p": "x" * MAX_REQUEST_HEADER_BYTES})
    with pytest.raises(ProtocolError, match="exceeds 4096") as caught:
        encode_request(header)
    assert caught.value.request_id == b"i"


def test_batch_header_may_be_longer_than_a_clients() -> None:
    """A client's longest header still fits once the daemon has added to it."""
    header = RequestHeader(v=1, id=b"i", op="infer", model="m" * 256, params={"p": "x" * 4080})
    frames = joined(encode_request(header, max_header_bytes=MAX_BATCH_HEADER_BYTES))
    with pytest.raises(ProtocolError, match="exceeds 4096"):
        decode_request(frames, Limits())
    assert decode_request(frames, Limits(), MAX_BATCH_HEADER_BYTES)[0] == header


def test_refusals_carry_the_details_that_their_codes_promise() -> None:
    foreign = msgpack.packb({"v": 2, "id": b"i"})
    with pytest.raises(ProtocolError) as caught:
        decode_request([b"", foreign], Limits())
    assert caught.value.details == {"versions": ["1"]}


def test_keys_at_their_default_are_left_out() -> None:
    plain = msgpack.unpackb(encode_request(RequestHeader(v=1, id=b"i", op="hello"))[1])
    assert plain == {"v": 1, "id": b"i", "op": "hello"}
    assert msgpack.unpackb(encode_reply(ReplyHeader(v=1, id=b"i"))[1]) == {"v": 1, "id": b"i"}


def test_error_reply() -> None:
    frames = error_reply(b"i", "too_large", "no", details={"limit": "max_items", "models": ["a"]})
    header, outputs = decode_reply(joined(frames))
    assert outputs == {}
    assert header.error == ErrorBody("too_large", "no", False, {"limit": "max_items", "models": ["a"]})


def test_long_item_errors_are_cut_so_that_the_reply_can_be_read() -> None:
    failures = tuple(ItemError(i, "model_failed", "m" * 500) for i in range(2048))
    frames = encode_reply(ReplyHeader(v=1, id=b"i", item_errors=failures))
    header, _ = decode_reply(joined(frames))
    assert [e.item for e in header.item_errors] == list(range(2048))
    assert {e.message for e in header.item_errors} == {"m" * 16}


def test_long_error_is_cut_so_that_the_reply_can_be_read() -> None:
    frames = error_reply(b"i", "model_failed", "m" * MAX_REPLY_HEADER_BYTES, True, {"why": "x"})
    header, _ = decode_reply(joined(frames))
    assert header.error == ErrorBody("model_failed", "m" * 1024, True)


def test_reply_header_that_cannot_be_cut_is_not_sent() -> None:
    failures = tuple(ItemError(i, "model_failed", "m") for i in range(10_000))
    with pytest.raises(ProtocolError, match="exceeds 262144") as caught:
        encode_reply(ReplyHeader(v=1, id=b"i", item_errors=failures))
    assert caught.value.request_id == b"i"


def test_reply_header_over_the_limit_is_refused() -> None:
    header = msgpack.packb({"v": 1, "id": b"i", "model": "m" * MAX_REPLY_HEADER_BYTES})
    with pytest.raises(ProtocolError, match="exceeds 262144"):
        decode_reply([b"", header])


def test_items_are_limited_in_requests_and_not_in_replies() -> None:
    tensor = {"x": Tensor.from_numpy(np.zeros(3, "u1"))}
    request = joined(encode_request(RequestHeader(v=1, id=b"i", op="infer"), tensor))
    assert decode_request(request, Limits(max_items=3))[1]["x"].items == 3
    with pytest.raises(ProtocolError, match="max_items = 2") as caught:
        decode_request(request, Limits(max_items=2))
    assert (caught.value.code, caught.value.details) == ("too_large", {"limit": "max_items"})
    assert decode_reply(joined(encode_reply(ReplyHeader(v=1, id=b"i"), tensor)))[1]["x"].items == 3


@pytest.mark.parametrize(("size", "read"), [(0, b"i"), (MAX_REQUEST_HEADER_BYTES, b"")])
def test_the_id_of_a_message_that_was_cut_is_read_from_a_header_within_its_size(
    size: int, read: bytes
) -> None:
    header = msgpack.packb({"v": 1, "id": b"i", "op": "infer", "more": b"." * size})
    with pytest.raises(ProtocolError, match="max_request_bytes") as caught:
        refuse_cut([b"", header, *[b""] * 40], Limits())
    assert (caught.value.code, caught.value.request_id) == ("too_large", read)


def test_document_is_text_or_bytes() -> None:
    assert document("document", "é")["document"].strings() == ["é"]
    assert document("tokenizer", b"\xff")["tokenizer"].raw_strings() == [b"\xff"]
