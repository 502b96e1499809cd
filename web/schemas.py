"""Request bodies as typed structs: their annotations are the schema. Unknown keys are ignored; null means the default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

# What extra_json_schema says is documented here and checked by the handlers, with errors of their own.
SOME = {"minItems": 1}
Text = Annotated[str, Meta(description="one text", extra_json_schema={"minLength": 1})]
TokenId = Annotated[int, Meta(extra_json_schema={"minimum": 0})]
TokenIds = Annotated[list[TokenId], Meta(description="token ids of one text", extra_json_schema=SOME)]
TextList = Annotated[list[Text], Meta(extra_json_schema=SOME)]
Texts = Annotated[
    Text | Annotated[list[TokenId | Text | TokenIds], Meta(extra_json_schema=SOME)],
    Meta(description="one text, its token ids, or a list of either; a flat list of ids is one text"),
]
Pair = Annotated[list[Text], Meta(extra_json_schema={"minItems": 1, "maxItems": 2})]
Pairs = Annotated[
    Text | Annotated[list[Text | Pair], Meta(extra_json_schema=SOME)],
    Meta(
        description="one text; a flat list of two texts is one pair; else a list whose entries are [text] or [text, text]"
    ),
]
Dimensions = Annotated[
    int, Meta(ge=1, le=1 << 20, description="how many of the vector's first numbers to keep")
]
ModelName = Annotated[
    str,
    Meta(
        description="a served model's name, or what follows its last «/»; the first that is fit if left out"
    ),
]
Direction = Annotated[
    Literal["left", "Left", "right", "Right"], Meta(description="the side on which over-long texts are cut")
]
Truncate = Annotated[bool, Meta(description="cut over-long texts (the default) or refuse them")]
PromptName = Annotated[str, Meta(description="a prompt of the model, put before each text")]
RawScores = Annotated[bool, Meta(description="logits as they are, without softmax or sigmoid")]
Int64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Scalar = bool | Int64 | float | str
Parameters = Annotated[
    dict[str, Scalar], Meta(max_length=16, description="parameters that the model declares")
]
Rows = Annotated[
    list[Any],
    Meta(max_length=4096, description="one entry per item: as many as any daemon's max_items at most"),
]


class EmbedRequest(msgspec.Struct):
    """Texts to embed, as TEI takes them."""

    inputs: Texts
    truncate: Truncate | None = None
    truncation_direction: Direction | None = None
    prompt_name: PromptName | None = None
    normalize: Annotated[bool, Meta(description="vectors of length 1 (the default)")] | None = None
    dimensions: Dimensions | None = None
    model: ModelName | None = None


class EmbedAllRequest(msgspec.Struct):
    """Texts whose every token is embedded, as TEI takes them."""

    inputs: Texts
    truncate: Truncate | None = None
    truncation_direction: Direction | None = None
    prompt_name: PromptName | None = None
    model: ModelName | None = None


class EmbedSparseRequest(EmbedAllRequest):
    """Texts to embed sparsely, as TEI takes them."""


class PredictRequest(msgspec.Struct):
    """Texts or pairs of texts to classify, as TEI takes them."""

    inputs: Pairs
    truncate: Truncate | None = None
    truncation_direction: Direction | None = None
    raw_scores: RawScores | None = None
    model: ModelName | None = None


class RerankDocument(msgspec.Struct):
    """A document with its text in a field."""

    text: Text


Documents = Annotated[
    list[Text | RerankDocument],
    Meta(description="texts to rank, bare or as {text: …} objects", extra_json_schema=SOME),
]
TopN = Annotated[int, Meta(ge=1, description="how many of the best to answer; all if left out")]


class RerankRequest(msgspec.Struct):
    """POST /rerank: TEI's form with `texts`; with `documents` it is that of Cohere, Jina and vLLM."""

    query: Text
    texts: Annotated[TextList, Meta(description="texts to rank")] | None = None
    truncate: Truncate | None = None
    truncation_direction: Direction | None = None
    raw_scores: RawScores | None = None
    return_text: Annotated[bool, Meta(description="answer the texts too")] | None = None
    model: ModelName | None = None
    documents: Documents | None = None
    top_n: TopN | None = None
    return_documents: Annotated[bool, Meta(description="answer the documents too")] | None = None


class RankRequest(msgspec.Struct):
    """POST /v1/rerank and /v2/rerank, as clients of Cohere, Jina and vLLM send it."""

    query: Text
    documents: Documents
    model: ModelName | None = None
    top_n: TopN | None = None
    return_documents: Annotated[bool, Meta(description="answer the documents too")] | None = None


class ScoreRequest(msgspec.Struct):
    """POST /v1/score, as vLLM takes it: one text against one or many, or two lists of the same length."""

    text_1: Text | TextList | None = None
    text_2: Text | TextList | None = None
    queries: Annotated[Text | TextList, Meta(description="another name of text_1")] | None = None
    documents: Annotated[Text | TextList, Meta(description="another name of text_2")] | None = None
    model: ModelName | None = None


class ClassifyRequest(msgspec.Struct):
    """POST /v1/classify, as vLLM takes it."""

    input: Text | TextList
    model: ModelName | None = None


class TokenParameters(msgspec.Struct):
    """How token labels become entities."""

    aggregation_strategy: (
        Annotated[
            Literal["none", "simple"],
            Meta(description="a label per token, or neighbours of one kind together"),
        ]
        | None
    ) = None
    ignore_labels: Annotated[list[str], Meta(description="labels to leave out; O if left out")] | None = None


class TokenClassificationRequest(msgspec.Struct):
    """Texts whose tokens are labelled, as Hugging Face's clients send them."""

    inputs: Text | TextList
    parameters: TokenParameters | None = None
    truncate: Truncate | None = None
    model: ModelName | None = None


class SimilarityInputs(msgspec.Struct):
    """A sentence and those to compare it with."""

    source_sentence: Text
    sentences: TextList


class SimilarityParameters(msgspec.Struct):
    """How the sentences become tokens."""

    truncate: Truncate | None = None
    truncation_direction: Direction | None = None
    prompt_name: PromptName | None = None


class SimilarityRequest(msgspec.Struct):
    """Sentences to compare, as TEI takes them."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None
    model: ModelName | None = None


class TokenizeRequest(msgspec.Struct):
    """Texts to split into tokens, as TEI takes them."""

    inputs: Text | TextList
    add_special_tokens: bool | None = None
    prompt_name: PromptName | None = None
    model: ModelName | None = None


class DecodeRequest(msgspec.Struct):
    """Token ids to turn into text, as TEI takes them."""

    ids: Annotated[
        list[TokenId | list[TokenId]],
        Meta(description="ids of one text, or a list of such lists", extra_json_schema=SOME),
    ]
    skip_special_tokens: bool | None = None
    model: ModelName | None = None


class VertexRequest(msgspec.Struct):
    """POST /vertex: each instance is the body of the route that suits the model."""

    instances: Annotated[
        list[Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]],
        Meta(min_length=1, max_length=512),
    ]


class EmbeddingsRequest(msgspec.Struct):
    """POST /v1/embeddings, as OpenAI's clients send it."""

    input: Texts
    model: ModelName | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = None
    user: str | None = None


class InferRequest(msgspec.Struct):
    """POST /v1/models/<model>/infer as JSON: one list per input, with one entry per item."""

    inputs: dict[str, Rows]
    parameters: Parameters = {}
    priority: Literal[0, 1, 2] = 1
    timeout_ms: Annotated[int, Meta(ge=1, le=86_400_000)] | None = None


DType = Literal[
    "bool", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "f16", "bf16", "f32", "f64", "utf8", "bytes"
]
Shape = Annotated[list[Annotated[int, Meta(ge=0, le=1 << 40)]], Meta(min_length=1, max_length=8)]


# Left as it is until the dtype says what it is: a list of anything would cost many times its bytes.
PackedData = Annotated[
    msgspec.Raw,
    Meta(extra_json_schema={"anyOf": [{"type": "string", "contentEncoding": "base64"}, {"type": "array"}]}),
]


class PackedTensor(msgspec.Struct):
    """A dense tensor in MessagePack: raw little-endian bytes, row-major; `utf8` and `bytes` as a list of items."""

    dtype: DType
    shape: Shape
    data: PackedData


class PackedInferRequest(msgspec.Struct):
    """POST /v1/models/<model>/infer as MessagePack."""

    inputs: dict[str, PackedTensor]
    parameters: Parameters = {}
    priority: Literal[0, 1, 2] = 1
    timeout_ms: Annotated[int, Meta(ge=1, le=86_400_000)] | None = None


KServeType = Literal[
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
KServeParameters = dict[str, Scalar]


class KServeInput(msgspec.Struct):
    """One input tensor; without `data` its bytes follow the JSON, as many as its parameter binary_data_size says."""

    name: str
    shape: Shape
    datatype: KServeType
    parameters: KServeParameters = {}
    data: list[Any] | None = None


class KServeOutput(msgspec.Struct):
    """One output that is asked for."""

    name: str
    parameters: KServeParameters = {}


class KServeInferRequest(msgspec.Struct):
    """POST /v2/models/<model>/infer, the Open Inference Protocol with its binary tensor extension."""

    inputs: Annotated[list[KServeInput], Meta(min_length=1, max_length=16)]
    id: str | None = None
    parameters: KServeParameters = {}
    outputs: Annotated[list[KServeOutput], Meta(max_length=16)] | None = None


BODIES: tuple[type[msgspec.Struct], ...] = (
    EmbedRequest, EmbedAllRequest, EmbedSparseRequest, PredictRequest, RerankRequest, RankRequest, ScoreRequest,
    ClassifyRequest, TokenClassificationRequest, SimilarityRequest, TokenizeRequest, DecodeRequest, VertexRequest,
    EmbeddingsRequest, InferRequest, KServeInferRequest,
)  # fmt: skip

# msgspec looks into a type on its first use, and two threads that do so at once end the process; so it happens here.
for _kind in BODIES:
    msgspec.json.Decoder(_kind)
msgspec.msgpack.Decoder(PackedInferRequest)
