"""In half precision on a GPU every family and head is as near to float32 as Transformers' own half, in every bucket.

Needs CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config
from families import FAMILIES, PADDED
from heads import Row, bge_m3, facts, pairs, rows_of
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers import AutoModelForTokenClassification as AutoModelForTokens

from gpu_server.engine.runner import Runner
from gpu_server.errors import EngineStartFailed
from gpu_server.models.text.choice import choose
from gpu_server.models.text.graphs import ladder
from gpu_server.models.text.model import TextModel
from gpu_server.wire import Tensor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = torch.device("cuda")
LIMIT = {"float16": 3e-3, "bfloat16": 2.4e-2}
"""bfloat16 has three bits less of each number, so eight times the error."""
NEARLY = 1.1
NOT_IN_HALF = ("deberta", "mra")
"""Their own code multiplies float32 by half precision, which torch refuses."""
OTHER_VALUES = {"deepseek_v3", "minicpm3", "youtu"}
"""Their values are of another size than their keys."""
WAITING = {"aria_text", "hunyuan_v1_moe", "jetmoe", "phimoe"}
WAITING_IN_FLOAT16 = {
    "cohere2_moe", "flex_olmo", "granitemoe", "granitemoeshared", "minimax_m3_vl_text", "mixtral", "olmoe",
}  # fmt: skip
"""They wait for the device as they run: torch's grouped products take bfloat16 alone without that."""
PADDED_BY_SOME = {"moshi"}
"""Transformers before 5.23 leaves its attention out of AttentionInterface."""
MAY_HAVE_NO_GRAPHS = {
    "float16": {*PADDED, *OTHER_VALUES, *WAITING, *WAITING_IN_FLOAT16, *PADDED_BY_SOME},
    "bfloat16": {*PADDED, *OTHER_VALUES, *WAITING, *PADDED_BY_SOME},
}
_TWO_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 2}
_SMALL_LATENTS = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip
_ALL_EXPERTS: dict[str, dict[str, Any]] = {
    "aria_text": {"moe_num_experts": 2, "moe_topk": 2},
    "flex_olmo": {"num_experts": 2, "num_experts_per_tok": 2},
    "gpt_oss": _TWO_EXPERTS,
    "granitemoe": _TWO_EXPERTS,
    "granitemoe_swa": _TWO_EXPERTS,
    "granitemoeshared": _TWO_EXPERTS,
    "jetmoe": _TWO_EXPERTS,
    "llama4_text": {"num_local_experts": 1, "num_experts_per_tok": 1},
    "minimax": _TWO_EXPERTS,
    "minimax_m3_vl_text": {"num_local_experts": 4, "num_experts_per_tok": 4},
    "mixtral": _TWO_EXPERTS,
    "openai_privacy_filter": _TWO_EXPERTS,
    # Its second expert counts only where it is nearly as good as the first, but for this.
    "phimoe": {**_TWO_EXPERTS, "router_jitter_noise": 1.0},
}
"""Which experts a token goes to may turn on the last bit of a number: here it goes to all."""
_SOFTER: dict[str, dict[str, Any]] = {
    "deepseek_v3": _SMALL_LATENTS,
    "embedding_gemma2_text": {"head_dim": 8, "per_layer_config": {}, "num_hidden_layers": 2,
                              "layer_types": ["sliding_attention", "full_attention"]},
    "gemma4_unified_text": {"head_dim": 8, "global_head_dim": 16, "per_layer_config": {}},
    "lfm3": {"head_dim": 8, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "muse_glimmer_text": {"qk_scale_factor": 1.0},
    "youtu": {**_SMALL_LATENTS, "num_key_value_heads": 4},
}  # fmt: skip
"""Heads that are far wider than these tiny layers make scores so large that attention chooses one token."""
_FEWER: dict[str, dict[str, Any]] = {
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention", "full_attention"]},
}
"""Its linear attention doubles an error, of random weights, with each layer."""
STEADY = {**_ALL_EXPERTS, **_SOFTER, **_FEWER}
"""Configs in which a rounding error stays one, of families whose usual tiny config makes more of it."""
SMALLER = {"phimoe": 0.25}
"""The scale of its weights: its experts have an order, which turns on the last bit too."""
TURNED = {"llama4_text", "mixtral", "phimoe"}
"""In their usual configs some text goes to other experts in another bucket."""
MakeModel = Callable[..., Path]
Vectors = Any
KINDS = [
    ("graphs", "albert"), ("compiled graphs", "bert"), ("compiled graphs", "distilbert"),
    ("compiled graphs", "gemma3_text"), ("compiled graphs", "mistral"), ("compiled graphs", "modernbert"),
    ("compiled graphs", "nomic_bert"), ("compiled graphs", "qwen3"), ("compiled graphs", "roberta"),
    ("fused graphs", "bert"), ("fused graphs", "camembert"), ("fused graphs", "roberta"), ("fused graphs", "xlm-roberta"),
]  # fmt: skip


def started(
    folder: Path, dtype: str, kind: str, most: int = 1024, **options: Any
) -> tuple[TextModel, Runner]:
    model = choose(
        str(folder), dtype=dtype, compiled=kind == "compiled graphs", fused=kind == "fused graphs", **options
    )
    model.load(GPU)
    model.max_batch_tokens, model.max_batch_items = most, 400
    runner = Runner(model, GPU)
    # Processes to compile in would take longer to start.
    with torch._inductor.config.patch(compile_threads=1):
        model.warm_up(runner.run)
    return model, runner


def like_trained(folder: Path, scale: float = 0.5) -> Path:
    """Weights as small beside their layer's width as trained ones are, which do not grow rounding errors."""
    for path in folder.glob("*.safetensors"):
        weights = load_file(path)
        save_file({n: w * scale if w.dim() > 1 else w for n, w in weights.items()}, path, {"format": "pt"})
    return folder


def steady(make_model: MakeModel, family: str) -> Path:
    folder = make_model(family, pooling="mean", **STEADY.get(family, {}))
    return like_trained(folder, SMALLER.get(family, 0.5))


def answer(runner: Runner, rows: list[Row], name: str = "embedding", **params: Any) -> list[Vectors]:
    given = {"input_ids": Tensor.from_rows(rows)}
    if "token_type_ids" in runner.model.inputs:
        given["token_type_ids"] = Tensor.from_rows([np.arange(len(row), dtype=np.int32) % 2 for row in rows])
    outputs, errors = runner.run(given, params)
    assert errors == []
    return list(outputs[name].rows())


@torch.inference_mode()
def stock(
    folder: Path, dtype: torch.dtype, rows: list[Row], made: Callable[..., Any], auto: Any = AutoModel
) -> Any:
    """What Transformers' own model gives each text alone; `made` makes it of the model, its ids and token types."""
    model = auto.from_pretrained(folder, dtype=dtype).to(GPU).eval()
    results = []
    for row in rows:
        ids = torch.from_numpy(row)[None].long().to(GPU)
        results.append(
            made(model, ids, torch.arange(len(row), device=GPU)[None] % 2).float().flatten().cpu().numpy()
        )
    return np.concatenate(results)


def mean(model: Any, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).last_hidden_state[0].float().mean(0)


def distance(got: Any, want: Any) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def check_error(name: str, dtype: str, got: Any, want: Any, half: Any) -> None:
    """No further from float32 than the limit, nor than Transformers' own half precision."""
    assert check_beside(name, dtype, got, want, half) <= LIMIT[dtype]


def check_beside(name: str, dtype: str, got: Any, want: Any, half: Any) -> float:
    """No further from float32 than Transformers' own half precision; returns how far."""
    ours, theirs = distance(got, want), distance(half, want)
    print(f"{name}, {dtype}: error to float32 {ours:.2e}, Transformers' own {theirs:.2e}")
    assert ours <= NEARLY * theirs
    return ours


def some_rows() -> list[Row]:
    return [row for seed in range(8) for row in rows_of([5, 40, 3, 17, 64, 9, 90, 28], seed=seed)]


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NOT_IN_HALF])
def test_every_family_is_as_near_to_float32(make_model: MakeModel, family: str, dtype: str) -> None:
    check_error(*measured(steady(make_model, family), family, dtype))


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("family", STEADY)
def test_where_an_error_may_grow_it_grows_no_more_than_in_transformers(
    make_model: MakeModel, family: str, dtype: str
) -> None:
    check_beside(*measured(like_trained(make_model(family, pooling="mean")), family, dtype))


def measured(folder: Path, family: str, dtype: str) -> tuple[str, str, Any, Any, Any]:
    """The arguments of `check_error`."""
    rows = some_rows()
    want, half = (stock(folder, kind, rows, mean) for kind in (torch.float32, getattr(torch, dtype)))
    model, runner = started(folder, dtype, "graphs")
    assert facts(model).runs == "graphs" or family in MAY_HAVE_NO_GRAPHS[dtype]
    got = np.concatenate(answer(runner, rows))
    return f"{family}, {facts(model).runs}", dtype, got, want, half


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_every_kind_of_graph_is_as_near_to_float32(make_model: MakeModel, kind: str, family: str) -> None:
    folder = like_trained(make_model(family, pooling="mean"))
    rows = some_rows()
    want, half = (stock(folder, dtype, rows, mean) for dtype in (torch.float32, torch.float16))
    model, runner = started(folder, "float16", kind, 128)
    assert facts(model).runs == kind
    got = np.concatenate([answer(runner, [row])[0] for row in rows])
    check_error(f"{family}, {kind}", "float16", got, want, half)


@pytest.mark.parametrize("family", NOT_IN_HALF)
def test_what_does_not_run_in_half_precision_runs_in_float32(make_model: MakeModel, family: str) -> None:
    folder = make_model(family, pooling="mean")
    with pytest.raises(EngineStartFailed, match=r"does not run in float16: .*; set dtype to float32$"):
        started(folder, "float16", "graphs")
    model, _ = started(folder, "auto", "graphs")
    assert facts(model).dtype == "float32"


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NOT_IN_HALF])
def test_a_text_is_the_same_in_every_bucket(make_model: MakeModel, family: str, dtype: str) -> None:
    usual = family not in TURNED
    folder = like_trained(make_model(family, pooling="mean")) if usual else steady(make_model, family)
    model, runner = started(folder, dtype, "graphs")
    assert facts(model).runs == "graphs" or family in MAY_HAVE_NO_GRAPHS[dtype]
    worst = least_cosine(runner, 1024)
    print(f"{family}, {facts(model).runs}, {dtype}: least cosine to itself {worst:.7f}")
    assert worst >= 0.9999


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_a_text_is_the_same_in_every_bucket_of_each_kind(
    make_model: MakeModel, kind: str, family: str
) -> None:
    model, runner = started(like_trained(make_model(family, pooling="mean")), "float16", kind, 128)
    assert facts(model).runs == kind
    worst = least_cosine(runner, 128)
    print(f"{family}, {kind}: least cosine to itself {worst:.7f}")
    assert worst >= 0.9999


def least_cosine(runner: Runner, most: int) -> float:
    """Of texts of several lengths alone to themselves among others, in every bucket, exactly filled."""
    worst = 1.0
    for length in (1, 7, 30, 90):
        text = rows_of([length], seed=length)
        alone = answer(runner, text)[0]
        for bucket in (size for size in ladder(most) if size > length):
            others = rows_of(fill(bucket - length), seed=bucket)
            for rows, place in (([*text, *others], 0), ([*others, *text], -1)):
                got = answer(runner, rows)[place]
                worst = min(worst, float(got @ alone / np.linalg.norm(got) / np.linalg.norm(alone)))
    return worst


def fill(tokens: int) -> list[int]:
    rng = np.random.default_rng(tokens)
    lengths: list[int] = []
    while tokens:
        lengths.append(min(int(rng.integers(1, 91)), tokens))
        tokens -= lengths[-1]
    return lengths


def logits(model: Any, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits[0]


def pair_logits(model: Any, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, token_type_ids=types).logits[0]


def states(model: Any, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).last_hidden_state[0]


def unit_first(model: Any, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(model(input_ids=ids).last_hidden_state[0, 0].float(), dim=0)


def colbert(model: Any, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    weights = torch.load(Path(model.name_or_path) / "colbert_linear.pt", weights_only=True)
    hidden = model(input_ids=ids).last_hidden_state[0, 1:]
    projected = torch.nn.functional.linear(hidden, *(weights[n].to(hidden) for n in ("weight", "bias")))
    return torch.nn.functional.normalize(projected.float(), dim=-1)


def splade(model: Any, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits[0].float().relu().log1p().amax(0)


def lexical(model: Any, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    linear = torch.load(Path(model.name_or_path) / "sparse_linear.pt", weights_only=True)
    hidden = model(input_ids=ids).last_hidden_state[0]
    weights = torch.nn.functional.linear(hidden, *(linear[n].to(hidden) for n in ("weight", "bias")))
    return weights.new_zeros(96).scatter_reduce(0, ids[0], weights[:, 0].relu(), "amax")


def dense(runner: Runner, rows: list[Row], **params: Any) -> Any:
    """Sparse vectors as rows of the whole vocabulary."""
    made = np.zeros((len(rows), 96), np.float32)
    indices, values = (answer(runner, rows, f"sparse_{part}", **params) for part in ("indices", "values"))
    for i, (at, value) in enumerate(zip(indices, values, strict=True)):
        made[i, at] = value
    return made.ravel()


def named(name: str, **params: Any) -> Callable[[Runner, list[Row]], Any]:
    return lambda runner, rows: np.concatenate([row.ravel() for row in answer(runner, rows, name, **params)])


Head = tuple[
    Callable[[MakeModel], Path], Any, Callable[..., Any], Callable[[Runner, list[Row]], Any], dict[str, Any]
]
HEADS: dict[str, Head] = {
    "rerank": (lambda make: make("roberta", auto=AutoModelForSequenceClassification, num_labels=1),
               AutoModelForSequenceClassification, logits, named("logits"), {}),
    "pairs": (lambda make: pairs(make, "bert", num_labels=3),
              AutoModelForSequenceClassification, pair_logits, named("logits"), {}),
    "mean": (lambda make: make("modernbert", auto=AutoModelForSequenceClassification, num_labels=3,
                               classifier_pooling="mean"),
             AutoModelForSequenceClassification, logits, named("logits"), {}),
    "last": (lambda make: make("qwen3", auto=AutoModelForSequenceClassification, num_labels=1),
             AutoModelForSequenceClassification, logits, named("logits"), {}),
    "padded": (lambda make: make("deberta-v2", auto=AutoModelForSequenceClassification, num_labels=3),
               AutoModelForSequenceClassification, logits, named("logits"), {}),
    "tokens": (lambda make: make("bert", auto=AutoModelForTokens, num_labels=5),
               AutoModelForTokens, logits, named("logits"), {}),
    "splade": (lambda make: make("bert", auto=AutoModelForMaskedLM), AutoModelForMaskedLM, splade, dense,
               {"pooling": "splade"}),
    "cls": (lambda make: make("bert", pooling="cls", normalize=True), AutoModel, unit_first, named("embedding"), {}),
    "last token": (lambda make: make("qwen3", pooling="lasttoken"), AutoModel,
                   lambda model, ids, types: states(model, ids, types)[-1], named("embedding"), {}),
    "token embeddings": (lambda make: make("roberta", pooling="mean"), AutoModel, states,
                         named("token_embeddings", output="token_embeddings"), {}),
    "bge-m3, dense": (bge_m3, AutoModel, unit_first, named("embedding", output="all"), {}),
    "bge-m3, sparse": (bge_m3, AutoModel, lexical, partial(dense, output="all"), {}),
    "bge-m3, colbert": (bge_m3, AutoModel, colbert, named("colbert", output="all"), {}),
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_as_near_to_float32(make_model: MakeModel, head: str) -> None:
    make, auto, made, got, options = HEADS[head]
    folder = like_trained(make(make_model))
    rows = some_rows()
    want, half = (stock(folder, dtype, rows, made, auto) for dtype in (torch.float32, torch.float16))
    model, runner = started(folder, "float16", "fused graphs", **options)
    assert facts(model).runs.endswith("graphs") or head == "padded"
    check_error(f"{head}, {facts(model).runs}", "float16", got(runner, rows), want, half)


@pytest.mark.parametrize("head", [head for head in HEADS if head != "padded"])
def test_every_head_of_compiled_layers_is_as_near_to_float32(make_model: MakeModel, head: str) -> None:
    make, auto, made, got, options = HEADS[head]
    folder = like_trained(make(make_model))
    rows = some_rows()
    want, half = (stock(folder, dtype, rows, made, auto) for dtype in (torch.float32, torch.float16))
    model, runner = started(folder, "float16", "compiled graphs", 128, **options)
    assert facts(model).runs == "compiled graphs"
    check_error(
        f"{head}, compiled graphs",
        "float16",
        np.concatenate([got(runner, [row]) for row in rows]),
        want,
        half,
    )
