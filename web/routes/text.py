"""Text to tokens and back, done in this worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_server.errors import InvalidRequest, UnsupportedOperation
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire.documents import ModelInfo
from web.backend import Backend
from web.call import Call
from web.encoding import Answer, json_answer
from web.errors import BadField, EmptyInput
from web.inputs import as_texts, cut_characters
from web.routing import Routes
from web.schemas import DecodeRequest, TokenizeRequest

if TYPE_CHECKING:
    from tokenizers import Encoding

routes = Routes("tei")

MAX_TOKENS = 1 << 17
"""What /tokenize answers at once: each token takes most of a kilobyte on the way."""


@routes.post("/tokenize", "/models/<path:model>/tokenize", body=TokenizeRequest, texts="inputs")
def tokenize(call: Call, body: TokenizeRequest, model: str = "") -> Answer:
    """The tokens of each text, not truncated; `start` and `stop` count characters of the text after its prompt."""
    texts = as_texts(body.inputs, "inputs")
    backend = Backend(call)
    backend.check_batch(len(texts), "inputs")
    tokenizer = _tokenizer(backend, model or body.model or "")
    cut_characters(texts, tokenizer, truncate=False, direction="right")
    prompt = tokenizer.prompt(body.prompt_name or "")
    answer: list[list[dict[str, Any]]] = []
    tokens = 0
    for text in texts:
        [encoding] = tokenizer.tokenize([prompt + text], special=body.add_special_tokens is not False)
        tokens += len(encoding.ids)
        _check_tokens(backend, tokens)
        answer.append(_tokens(prompt + text, encoding))
    return json_answer(answer)


@routes.post("/decode", "/models/<path:model>/decode", body=DecodeRequest, texts="ids")
def decode(call: Call, body: DecodeRequest, model: str = "") -> Answer:
    """The text of token ids, a list for one list of ids too."""
    rows = _rows(body.ids)
    backend = Backend(call)
    backend.check_batch(len(rows), "ids")
    tokenizer = _tokenizer(backend, model or body.model or "")
    return json_answer(tokenizer.decode(rows, skip_special=body.skip_special_tokens is not False))


def _check_tokens(backend: Backend, tokens: int) -> None:
    backend.check_tokens(tokens, "inputs")
    if tokens > MAX_TOKENS:
        raise InvalidRequest(
            f"inputs: more than the {MAX_TOKENS} tokens that one request may ask for", {"field": "inputs"}
        )


def _rows(ids: list[int | list[int]]) -> list[list[int]]:
    if not ids:
        raise EmptyInput("ids")
    flat = [i for i in ids if isinstance(i, int)]
    if len(flat) == len(ids):
        return [flat]
    if flat:
        raise BadField("ids", "token ids and lists of them side by side; put the ids of each text in a list")
    return [row for row in ids if isinstance(row, list)]


def _tokenizer(backend: Backend, name: str) -> TextTokenizer:
    def pick() -> ModelInfo:
        infos = [backend.model(name)] if name else backend.models()
        for info in infos:
            if info.text is not None:
                return info
        raise UnsupportedOperation(f"model {infos[0].name!r} takes no text", {"model": infos[0].name})

    return backend.with_tokenizer(pick, lambda info, tokenizer: tokenizer)


def _tokens(text: str, encoding: Encoding) -> list[dict[str, Any]]:
    parts = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
    return [
        {
            "id": number,
            "text": token if special else text[start:stop],
            "special": bool(special),
            "start": None if special else start,
            "stop": None if special else stop,
        }
        for number, token, (start, stop), special in parts
    ]
