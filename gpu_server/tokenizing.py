"""Text to token ids exactly as the model's tokenizer.json says, for clients and for the daemon."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from gpu_server.errors import ConfigError, InvalidRequest, MissingDependency
from gpu_server.pairs import PairJoiner, TypedRow, joiner
from gpu_server.wire import Tensor, Tensors
from gpu_server.wire.documents import TextInfo

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# A pool of threads made before a fork hangs in the child (huggingface/tokenizers); parallelism comes from processes.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHARACTERS_AT_ONCE = 1 << 20
PROMPT_LENGTH = "prompt_length"
"""The parameter of a model that pools without its prompts: how many tokens of each item are the prompt's."""

Direction = Literal["left", "right"]
Text = str | tuple[str, str]
"""One text, or a pair of them that the model reads together."""


def available() -> bool:
    """Whether the `tokenizers` package is installed."""
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        return False
    return True


def _portions(texts: Sequence[Text]) -> Iterator[list[Text]]:
    """Consecutive texts of together at most CHARACTERS_AT_ONCE, or a single one that is longer."""
    if len(texts) == 1:
        yield list(texts)
        return
    part: list[Text] = []
    size = 0
    for text in texts:
        # Of what is no text the tokenizer complains.
        more = sum(len(one) for one in (text if isinstance(text, tuple) else (text,)) if isinstance(one, str))
        if part and size + more > CHARACTERS_AT_ONCE:
            yield part
            part, size = [], 0
        part.append(text)
        size += more
    yield part


def digest(data: bytes) -> str:
    """SHA-256 of a tokenizer.json as hex: the identity that both sides compare."""
    return hashlib.sha256(data).hexdigest()


class TextTokenizer:
    """One model's tokenizer with its length limit and prompts; safe to share between threads.

    Raises MissingDependency if `tokenizers` is not installed.
    """

    def __init__(self, data: bytes, info: TextInfo) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise MissingDependency(
                "tokenising needs the package tokenizers: pip install tokenizers"
            ) from None
        self.info = info
        self._data = data
        self._ready: dict[Direction, Tokenizer] = {}
        self._joiners: dict[Direction, PairJoiner | None] = {}
        try:
            self._plain = Tokenizer.from_str(data.decode())
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            raise ConfigError(f"tokenizer.json cannot be used: {error}") from None
        self._plain.no_padding()
        self._plain.no_truncation()

    def prepare(self) -> None:
        """Build now what most texts need. Threads that need it first at the same time would each build their own."""
        self._truncating(None)

    def made_of(self, data: bytes, info: TextInfo) -> bool:
        """Whether making another of these would give the same."""
        return (self._data, self.info) == (data, info)

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str = "",
        truncate: bool = True,
        direction: Direction | None = None,
        first: int = 0,
    ) -> list[list[int]]:
        """Token ids of each text, special tokens included, at most `info.max_length`.

        `prompt_name` picks a prompt of the model ("" means its default). direction: the side that is cut, the model's own
        if None. Raises InvalidRequest on an unknown prompt, and on a text over the limit when `truncate` is off (naming the
        text, counted from `first`, and the limit).
        """
        prompt = self.prompt(prompt_name)
        rows = [prompt + t for t in texts] if prompt else list(texts)
        return [e.ids for e in self._encode(rows, truncate, direction, first)]

    def encode_pairs(
        self,
        texts: Sequence[Text],
        *,
        truncate: bool = True,
        direction: Direction | None = None,
        first: int = 0,
    ) -> list[TypedRow]:
        """Token ids and types of each pair or single text, special tokens included, at most `info.max_length`.

        Of a pair the longer text is cut first. Raises InvalidRequest as `encode`.
        """
        pairs = [text for text in texts if isinstance(text, tuple)]
        if len(pairs) == len(texts) and len({first for first, _ in pairs}) < len(pairs):
            self._truncating(direction)
            joins = self._joiners[self.side(direction)]
            if joins is not None:
                try:
                    if truncate:
                        return joins.rows(pairs, self.info.max_length)
                    return joins.rows(pairs, 0, partial(self._check_lengths, first=first))
                except TypeError:
                    check_utf8(pairs, first)
                    raise
        return [TypedRow(e.ids, e.type_ids) for e in self._encode(list(texts), truncate, direction, first)]

    def inputs(
        self,
        texts: Sequence[Text],
        *,
        typed: bool = False,
        prompt_name: str = "",
        truncate: bool = True,
        direction: Direction | None = None,
        first: int = 0,
    ) -> Tensors:
        """The inputs of a request: `input_ids` of texts or pairs, and `token_type_ids` if `typed`.

        Raises InvalidRequest as `encode`, and on a prompt where types or pairs are wanted.
        """
        if not typed and all(isinstance(text, str) for text in texts):
            plain = [text for text in texts if isinstance(text, str)]
            ids = self.encode(
                plain, prompt_name=prompt_name, truncate=truncate, direction=direction, first=first
            )
            return {"input_ids": Tensor.from_rows(ids, "i32")}
        if prompt_name:
            raise InvalidRequest("prompt_name is for models that embed", {"field": "prompt_name"})
        rows = self.encode_pairs(texts, truncate=truncate, direction=direction, first=first)
        inputs = {"input_ids": Tensor.from_rows([row.ids for row in rows], "i32")}
        if typed:
            inputs["token_type_ids"] = Tensor.from_rows([row.type_ids for row in rows], "i32")
        return inputs

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        special: bool = True,
        truncate: bool = False,
        direction: Direction | None = None,
    ) -> list[Encoding]:
        """Full encodings (ids, tokens, offsets in characters) of each text."""
        tokenizer = self._truncating(direction) if truncate else self._plain
        try:
            return tokenizer.encode_batch(list(texts), add_special_tokens=special)
        except TypeError:
            check_utf8(texts, 0)
            raise

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special: bool = True) -> list[str]:
        """The text of each row of ids. Raises InvalidRequest on an id outside the vocabulary."""
        for i, row in enumerate(rows):
            if row and not (min(row) >= 0 and max(row) < self.info.vocab_size):
                raise InvalidRequest(
                    f"input {i} has a token id outside 0 … {self.info.vocab_size - 1}",
                    {"item": i, "limit": "vocab_size"},
                )
        return self._plain.decode_batch([list(r) for r in rows], skip_special_tokens=skip_special)

    def _encode(
        self, texts: list[Any], truncate: bool, direction: Direction | None, first: int
    ) -> Iterator[Encoding]:
        """Some at a time: what is cut off stays in an encoding, which takes a hundred bytes for each character."""
        tokenizer = self._truncating(direction) if truncate else self._plain
        for part in _portions(texts):
            try:
                encodings = tokenizer.encode_batch_fast(part)
            except TypeError:
                check_utf8(part, first)
                raise
            if not truncate:
                self._check_lengths([len(encoding) for encoding in encodings], first)
            yield from encodings
            first += len(part)

    def _check_lengths(self, lengths: list[int], first: int) -> None:
        for i, length in enumerate(lengths, first):
            if length > self.info.max_length:
                raise InvalidRequest(
                    f"input {i} has {length} tokens, more than max_length = {self.info.max_length}",
                    {"item": i, "limit": "max_length"},
                )

    def prompt(self, name: str) -> str:
        """The text of a prompt, "" for the model's default. Raises InvalidRequest on an unknown name."""
        chosen = name or self.info.default_prompt
        if not chosen:
            return ""
        if chosen not in self.info.prompts:
            known = ", ".join(sorted(self.info.prompts)) or "none"
            raise InvalidRequest(
                f"prompt_name {chosen!r} is unknown; the model has: {known}", {"field": "prompt_name"}
            )
        return self.info.prompts[chosen]

    def side(self, direction: Direction | None) -> Direction:
        """The side on which over-long texts are cut: `direction`, or the model's own if that is None.

        Raises InvalidRequest on what is no side.
        """
        if direction is None:
            return self.info.truncation_direction
        if direction not in get_args(Direction):
            raise InvalidRequest(
                f"direction is {direction!r}; it must be left or right", {"field": "direction"}
            )
        return direction

    def _truncating(self, direction: Direction | None) -> Tokenizer:
        """A tokenizer per direction: changing a shared one while another thread encodes fails with «Already borrowed»."""
        from tokenizers import Tokenizer

        side = self.side(direction)
        known = self._ready.get(side)
        if known is None:
            # Without a lock, which a fork would take along as it is.
            known = Tokenizer.from_str(self._data.decode())
            known.no_padding()
            self._joiners[side] = joiner(self._plain, known, side)
            known.enable_truncation(self.info.max_length, direction=side)
            self._ready[side] = known
        return known


def check_utf8(texts: Sequence[Text], first: int) -> None:
    """Raise InvalidRequest naming the first text, counted from `first`, that UTF-8 cannot carry.

    To be asked where a text was refused as none, which is all that `tokenizers` says.
    """
    for i, text in enumerate(texts, first):
        whole = "".join(map(str, text)) if isinstance(text, tuple) else str(text)
        try:
            whole.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(
                f"text {i} holds a lone surrogate, which UTF-8 cannot carry", {"item": i}
            ) from None


def prompt_params(info: TextInfo, prompt_name: str) -> dict[str, int]:
    """What must go with ids that follow a prompt, for models that pool without it; {} for others."""
    length = info.prompt_lengths.get(prompt_name or info.default_prompt, 0)
    return {PROMPT_LENGTH: length} if length else {}
