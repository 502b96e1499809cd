"""The engine against `SentenceTransformer.encode` (batch 32, sorted, warm): same texts, one process, rounds in turn.

    python scripts/bench/encode.py [--model NAME] [--device cuda] [--texts 512] [--rounds 5] [--clients 4] [--request 128]
    python scripts/bench/encode.py --shape bert-base --device cuda

Texts are words of the model's vocabulary of mixed lengths: lognormal, median 40 tokens, sigma 0.8, 3 to the longest.

  text    theirs: `encode(texts, batch_size=32)`, which tokenises, sorts and pads. Ours: requests of --request texts,
          tokenised in --clients threads with the client's tokenizer while the engine runs what was tokenised before.
  ids     theirs: `forward` over batches of 32 made of ready ids, sorted and padded, results copied to the host. Ours: the
          same ids.
  engine  theirs as in text, ours as in ids: in service the web workers tokenise, and the engine gets ids.

Ours takes wire tensors and gives them back, in full batches of rows in their order, whichever request they are of, and as
many batches in flight as in service; it waits for a batch to be full, which the daemon does only while the engine is busy.

--shape takes random weights, and the tokenizer of --model for BERT's shapes, whose vocabulary has as many words. The others
have no texts: the stock Transformers model with sentence-transformers' own pooling and normalising is given ids. Theirs has
the number type that the engine reports. CPU is processor time of the whole process. After each kind stands the least cosine
between both sides' embeddings.
"""

from __future__ import annotations

import os

# Both sides tokenise with as many threads as the library likes, and torch's threads wait as they do in the engine.
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import platform
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentence_transformers
import torch
import transformers
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from gpu_server import specs
from gpu_server.config import Config, EngineConfig, ModelConfig
from gpu_server.engine import device as devices
from gpu_server.engine import shapes
from gpu_server.engine.bench import MEDIAN_TOKENS, SHORTEST, SIGMA
from gpu_server.engine.loader import LoadedModel, load
from gpu_server.models.text import source
from gpu_server.source import DEFAULT_NAME
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire.documents import TextInfo
from gpu_server.wire.tensor import Tensor

THEIR_BATCH = 32
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
Ids = list[NDArray[np.int32]]
Rows = NDArray[np.float32]


class Spent(NamedTuple):
    """Seconds that one pass over all texts took."""

    wall_s: float
    cpu_s: float


class Stock(torch.nn.Module):
    """A Transformers model as the first module of a SentenceTransformer."""

    def __init__(self, folder: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = transformers.AutoModel.from_pretrained(folder, dtype=dtype)

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Add `token_embeddings`."""
        hidden = self.model(features["input_ids"], features["attention_mask"]).last_hidden_state
        return {**features, "token_embeddings": hidden}


def main() -> None:
    """Print the set-up, a line a round, the medians, and how far the embeddings are apart."""
    options = parse()
    with models(options) as (ours, theirs), ThreadPoolExecutor(options.clients) as pool:
        info = ours.info
        assert info.text is not None
        show_setup(options, ours)
        lengths = mixed_lengths(options.texts, info.text.max_length)
        compare: dict[str, tuple[Callable[[], Rows], Callable[[], Rows]]] = {}
        if isinstance(theirs[0], Stock):
            ids = random_ids(lengths, info.text)
        else:
            tokenizer = TextTokenizer(ours.model.tokenizer_json() or b"", info.text)
            texts = make_texts(tokenizer, lengths)
            requests = [texts[i : i + options.request] for i in range(0, len(texts), options.request)]
            ids = tokenised(tokenizer, texts)
            compare["text"] = (
                lambda: their_encode(theirs, texts),
                lambda: our_rows(ours, pool.map(partial(tokenised, tokenizer), requests), options),
            )
        compare["ids"] = (lambda: their_forward(theirs, ids), lambda: our_rows(ours, [ids], options))
        if "text" in compare:
            compare["engine"] = (compare["text"][0], compare["ids"][1])
        tokens = sum(map(len, ids))
        print(f"{len(ids)} texts, {tokens} tokens; texts/s and tokens/s, theirs and ours")
        rounds(compare, len(ids), tokens, options.rounds)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="", help="a folder or hub id (default: all-MiniLM-L6-v2)")
    parser.add_argument("--shape", default="", choices=["", *shapes.SHAPES])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="number type of ours")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4, help="threads that tokenise requests")
    parser.add_argument("--request", type=int, default=128, help="texts of a request")
    parser.add_argument("--max-batch-tokens", type=int, default=16_384)
    parser.add_argument(
        "--in-flight", type=int, default=2, help="batches started before the first is waited for"
    )
    parser.add_argument("--no-compile", action="store_true", help="on a GPU, layers as they are")
    options = parser.parse_args()
    if options.model and options.shape and shapes.SHAPES[options.shape]["model_type"] != "bert":
        parser.error("--model lends its tokenizer to BERT's shapes only")
    return options


@contextmanager
def models(options: argparse.Namespace) -> Iterator[tuple[LoadedModel, SentenceTransformer]]:
    """The engine's model and theirs, on one device."""
    device = devices.choose(options.device)
    devices.prepare(device, options.threads)
    devices.use_own_stream(device, [options.model])
    with shapes.folder(options.shape) as made:
        folder = str(made or source.find(options.model))
        lent = made is not None and lend_tokenizer(options, made)
        ours = load_ours(folder, device, options)
        assert ours.info.text is not None
        dtype = getattr(torch, ours.info.dtype)
        if made is None or lent:
            theirs = SentenceTransformer(folder, device=str(device), model_kwargs={"dtype": dtype})
            theirs.max_seq_length = ours.info.text.max_length
        else:
            stock = Stock(folder, dtype)
            pooling = Pooling(ours.info.dimensions or 0, ours.info.pooling or "mean")
            theirs = SentenceTransformer(modules=[stock, pooling, Normalize()], device=str(device))
        yield ours, theirs.eval()


def lend_tokenizer(options: argparse.Namespace, made: Path) -> bool:
    """Put --model's tokenizer into the folder of a BERT of random weights, if it has one of as many words as that."""
    shape = shapes.SHAPES[options.shape]
    if shape["model_type"] != "bert":
        return False
    real = Path(source.find(options.model))
    saved = real / "tokenizer.json"
    if not saved.is_file() or len(json.loads(saved.read_bytes())["model"]["vocab"]) != shape["vocab_size"]:
        return False
    for name in TOKENIZER_FILES:
        if (real / name).is_file():
            shutil.copy(real / name, made)
    return True


def load_ours(folder: str, device: torch.device, options: argparse.Namespace) -> LoadedModel:
    """Load and warm up as the engine process does."""
    model = specs.of_model(ModelConfig(source=folder, dtype=options.dtype))
    engine = EngineConfig(
        device=str(device),
        threads=options.threads,
        max_batch_tokens=options.max_batch_tokens,
        batches_in_flight=options.in_flight,
        compile=not options.no_compile,
    )
    return load(model, specs.of_engine(Config(engine=engine), (model,)), device, lambda phase, done: None)


def show_setup(options: argparse.Namespace, ours: LoadedModel) -> None:
    """What was measured on what."""
    info = ours.info
    print(f"{options.shape or options.model or DEFAULT_NAME}: {info.dtype}, runs {info.runs}")
    threads = f"{torch.get_num_threads()} torch threads that wait {os.environ['OMP_WAIT_POLICY'].lower()}"
    print(f"{processor()}, {threads}; {devices.describe(ours.runner.device)}")
    print(f"ours: requests of {options.request} texts, tokenised in {options.clients} threads")
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, Transformers {transformers.__version__}, "
        f"sentence-transformers {sentence_transformers.__version__}"
    )


def processor() -> str:
    """The CPU's name and how many of its cores this process may use."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def mixed_lengths(count: int, longest: int) -> list[int]:
    """Tokens of each text."""
    drawn = np.random.default_rng(7).lognormal(np.log(MEDIAN_TOKENS), SIGMA, count)
    lengths: list[int] = drawn.round().clip(SHORTEST, longest).astype(int).tolist()
    return lengths


def random_ids(lengths: list[int], text: TextInfo) -> Ids:
    """Ids of which none is the padding's."""
    rng = np.random.default_rng(0)
    return [rng.integers(text.vocab_size // 10, text.vocab_size, n, dtype=np.int32) for n in lengths]


def make_texts(tokenizer: TextTokenizer, lengths: list[int]) -> list[str]:
    """Words that are one token each, as many as leave room for the special tokens."""
    special = len(tokenizer.encode([""])[0])
    known = tokenizer._plain.get_vocab()
    words = sorted(w for w in (k.lstrip("▁Ġ") for k in known) if w.isascii() and w.isalpha() and len(w) > 2)
    rng = np.random.default_rng(1)
    sample = [words[i] for i in rng.permutation(len(words))[:4000]]
    whole = [w for w, ids in zip(sample, tokenizer.encode(sample), strict=True) if len(ids) == special + 1]
    return [" ".join(rng.choice(whole, n - special)) for n in lengths]


def tokenised(tokenizer: TextTokenizer, texts: list[str]) -> Ids:
    """The ids of each text."""
    return [np.array(row, np.int32) for row in tokenizer.encode(texts)]


def their_encode(theirs: SentenceTransformer, texts: list[str]) -> Rows:
    """What a user of sentence-transformers calls."""
    rows: Rows = theirs.encode(texts, batch_size=THEIR_BATCH, show_progress_bar=False)
    return rows


@torch.inference_mode()
def their_forward(theirs: SentenceTransformer, ids: Ids) -> Rows:
    """Their model without their tokenizer: the batches that `encode` would form."""
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    rows: list[Any] = [None] * len(ids)
    for start in range(0, len(order), THEIR_BATCH):
        batch = order[start : start + THEIR_BATCH]
        padded = np.zeros((2, len(batch), len(ids[batch[0]])), np.int64)
        for row, item in enumerate(batch):
            padded[0, row, : len(ids[item])] = ids[item]
            padded[1, row, : len(ids[item])] = 1
        inputs, mask = torch.from_numpy(padded).to(theirs.device)
        out = theirs.forward({"input_ids": inputs, "attention_mask": mask})["sentence_embedding"]
        for item, vector in zip(batch, out.float().cpu().numpy(), strict=True):
            rows[item] = vector
    return np.stack(rows)


def our_rows(ours: LoadedModel, requests: Iterable[Ids], options: argparse.Namespace) -> Rows:
    """The rows of all requests in order, as many batches in flight as in service."""
    parts: list[Rows] = []
    pending: deque[Any] = deque()

    def take() -> None:
        outputs, errors = pending.popleft().wait()
        assert not errors
        parts.append(outputs["embedding"].to_numpy())

    for batch in full_batches(chain.from_iterable(requests), options.max_batch_tokens):
        pending.append(ours.runner.enqueue({"input_ids": Tensor.from_rows(batch)}, {}))
        if len(pending) >= options.in_flight:
            take()
    while pending:
        take()
    return np.concatenate(parts)


def full_batches(rows: Iterable[NDArray[np.int32]], limit: int) -> Iterator[Ids]:
    """Consecutive rows of together at most `limit` tokens, or a single one that is longer."""
    batch: Ids = []
    tokens = 0
    for row in rows:
        if batch and tokens + len(row) > limit:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(row)
    if batch:
        yield batch


def rounds(
    compare: dict[str, tuple[Callable[[], Rows], Callable[[], Rows]]], texts: int, tokens: int, count: int
) -> None:
    """Time both sides in turn, each first in every other round; print each round, and the median of the ratios."""
    head = ("", "texts/s", "texts/s", "tok/s", "tok/s", "ratio", "by CPU")
    print("".join(f"{name:>12}" for name in head))
    for name, sides in compare.items():
        for side in sides:
            side()
        ratios = []
        for number in range(count):
            first = number % 2
            spent = {side: timed(sides[side]) for side in (first, 1 - first)}
            them, us = spent[0], spent[1]
            ratios.append((them.wall_s / us.wall_s, them.cpu_s / us.cpu_s))
            rates = [f"{n / s.wall_s:12.0f}" for n in (texts, tokens) for s in (them, us)]
            print(f"{name:>12}{''.join(rates)}{ratios[-1][0]:12.2f}{ratios[-1][1]:12.2f}", flush=True)
        wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"{name + ' median':>13}{'':47}{wall:12.2f}{cpu:12.2f}")
        print(f"{'':12}least cosine between theirs and ours: {least_cosine(*(side() for side in sides)):.7f}")


def timed(run: Callable[[], Rows]) -> Spent:
    """Time one pass."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def least_cosine(a: Rows, b: Rows) -> float:
    """Over the texts."""
    one, other = a.astype(np.float64), b.astype(np.float64)
    product = (one * other).sum(1)
    return float((product / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


if __name__ == "__main__":
    main()
