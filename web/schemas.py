"""Request bodies as typed structs: their annotations are the schema. Keys not named here are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Texts = str | list[int | str | list[int]]
"""One text, its token ids, or a list of either; a flat list of ids is one text."""

Dimensions = Annotated[int, Meta(ge=1, le=1 << 20)]
Int64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Parameters = Annotated[dict[str, bool | Int64 | float | str], Meta(max_length=16)]


Rows = Annotated[list[Any], Meta(max_length=4096)]
"""One entry per item: as many as any daemon's `max_items`."""


class EmbedRequest(msgspec.Struct):
    """POST /embed, as TEI takes it; null means the default throughout."""

    inputs: Texts
    truncate: bool | None = None
    truncation_direction: Literal["left", "Left", "right", "Right"] | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: Dimensions | None = None


class EmbeddingsRequest(msgspec.Struct):
    """POST /v1/embeddings, as OpenAI's clients send it."""

    input: Texts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = None
    user: str | None = None


class InferRequest(msgspec.Struct):
    """POST /v1/models/<model>/infer: one list per input, with one entry per item."""

    inputs: dict[str, Rows]
    parameters: Parameters = {}
    priority: Literal[0, 1, 2] = 1
    timeout_ms: Annotated[int, Meta(ge=1, le=86_400_000)] | None = None


# msgspec looks into a type on its first use, and two threads that do so at once end the process; so it happens here.
for _kind in (EmbedRequest, EmbeddingsRequest, InferRequest):
    msgspec.json.Decoder(_kind)
