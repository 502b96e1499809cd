"""Python codec of proto/PROTOCOL.md: bytes in, messages out, no sockets."""

from gpu_server.wire.header import (
    VERSION,
    Descriptor,
    ErrorBody,
    ItemError,
    ReplyHeader,
    RequestHeader,
    Timing,
)
from gpu_server.wire.limits import (
    MAX_BATCH_HEADER_BYTES,
    MAX_REPLY_HEADER_BYTES,
    MAX_REQUEST_HEADER_BYTES,
    Limits,
)
from gpu_server.wire.message import (
    FAREWELL_ANSWER,
    Tensors,
    decode_reply,
    decode_request,
    document,
    encode_reply,
    encode_request,
    error_reply,
    refuse_cut,
)
from gpu_server.wire.tensor import Buffer, Tensor

__all__ = [
    "FAREWELL_ANSWER",
    "MAX_BATCH_HEADER_BYTES",
    "MAX_REPLY_HEADER_BYTES",
    "MAX_REQUEST_HEADER_BYTES",
    "VERSION",
    "Buffer",
    "Descriptor",
    "ErrorBody",
    "ItemError",
    "Limits",
    "ReplyHeader",
    "RequestHeader",
    "Tensor",
    "Tensors",
    "Timing",
    "decode_reply",
    "decode_request",
    "document",
    "encode_reply",
    "encode_request",
    "error_reply",
    "refuse_cut",
]
