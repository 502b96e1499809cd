"""Tokenising for clients that send text: a few threads beside the loop (the tokenizer releases the GIL)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gpu_server.errors import InternalError, RemoteError
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire import Tensors
from gpu_server.wire.documents import TextInfo

THREADS = 2

Finished = Callable[[Tensors | RemoteError], None]
_Job = tuple[Tensors, dict[str, Any], Finished]


class TextPool:
    """Turns texts into token ids off the loop's thread.

    wake: called from a pool thread when a result waits for `collect`, which runs its callback on the loop's thread.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenize")
        self._tokenizers: dict[str, TextTokenizer] = {}
        self._done: deque[tuple[Finished, Tensors | RemoteError]] = deque()

    def add(self, model: str, info: TextInfo, tokenizer_json: bytes) -> None:
        """Make a model's tokenizer known; models may share the file and differ in lengths and prompts.

        One that is known already stays: reading a tokenizer.json keeps the GIL, for a large one a second or longer.
        """
        known = self._tokenizers.get(model)
        if known is None or not known.made_of(tokenizer_json, info):
            self._tokenizers[model] = TextTokenizer(tokenizer_json, info)

    def keep(self, models: Container[str]) -> None:
        """Forget the tokenizers of all other models; what is submitted keeps its own."""
        self._tokenizers = {name: known for name, known in self._tokenizers.items() if name in models}

    def submit(self, model: str, texts: Tensors, options: dict[str, Any], finished: Finished) -> Future[None]:
        """Tokenise `text`, paired with `text_pair` if that is there; options as `TextTokenizer.inputs` has them.

        `finished` gets the model's inputs or the error, on the loop's thread. Cancelling the future before its turn saves
        the work and lets go of the texts.
        """
        job = [(texts, options, finished)]
        future = self._pool.submit(self._work, self._tokenizers[model], job)
        # The pool's queue keeps a cancelled call until its turn.
        future.add_done_callback(lambda _: job.clear())
        return future

    def collect(self) -> None:
        """Run the callbacks of what has finished."""
        while self._done:
            finished, outcome = self._done.popleft()
            finished(outcome)

    def close(self) -> None:
        """Stop after what is running."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, tokenizer: TextTokenizer, job: list[_Job]) -> None:
        texts, options, finished = job.pop()
        try:
            columns = [texts[name].strings() for name in ("text", "text_pair") if name in texts]
            rows = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
            outcome: Tensors | RemoteError = tokenizer.inputs(rows, **options)
        except RemoteError as error:
            outcome = error
        except Exception:  # noqa: BLE001 - `tokenizers` raises it bare; unanswered, the request would hang
            outcome = InternalError("the text could not be tokenised")
        self._done.append((finished, outcome))
        self._wake()
