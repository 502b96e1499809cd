"""Every family gives each sequence in a batch what Transformers gives it alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import COMMON, PACKED, PADDED
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from gpu_server.errors import ConfigError, EngineStartFailed
from gpu_server.models.text import attention, encoder, selfcheck
from gpu_server.models.text.encoder import Encoder

CPU = torch.device("cpu")
LENGTHS = np.array([3, 40, 1, 17, 3, 64, 9])


def ids_of(
    lengths: np.ndarray[Any, np.dtype[np.int64]], seed: int = 7
) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(seed).integers(4, 96, int(lengths.sum()), dtype=np.int32)


@torch.inference_mode()
def stock_rows(folder: Path, ids: np.ndarray[Any, np.dtype[np.int32]]) -> list[torch.Tensor]:
    model = AutoModel.from_pretrained(folder).eval()
    rows = np.split(ids, np.cumsum(LENGTHS)[:-1])
    return [model(input_ids=torch.from_numpy(row)[None].long()).last_hidden_state[0] for row in rows]


def loaded(folder: Path, device: torch.device = CPU, dtype: str = "float32") -> Encoder:
    made = encoder.load(folder, device, getattr(torch, dtype))
    selfcheck.choose(made, max_length=128)
    return made


@pytest.mark.parametrize("family", PACKED + PADDED)
def test_a_mixed_batch_equals_transformers_one_by_one(make_model: Callable[..., Path], family: str) -> None:
    folder = make_model(family)
    ids = ids_of(LENGTHS)
    made = loaded(folder)
    with torch.inference_mode():
        got = made(made.pack(ids, LENGTHS))
    torch.testing.assert_close(got, torch.cat(stock_rows(folder, ids)), atol=1e-5, rtol=1e-5)
    assert made.runs == ("packed" if family in PACKED else "padded")


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_the_padded_path_equals_the_packed_one(make_model: Callable[..., Path], family: str) -> None:
    made = loaded(make_model(family))
    batch = made.pack(ids_of(LENGTHS), LENGTHS)
    with torch.inference_mode():
        packed = made(batch)
        made.use("padded")
        torch.testing.assert_close(made(batch), packed, atol=1e-5, rtol=1e-5)


def test_a_decoder_set_bidirectional_looks_both_ways(make_model: Callable[..., Path]) -> None:
    folder = make_model("qwen3", is_causal=False)
    ids = ids_of(LENGTHS)
    made = loaded(folder)
    with torch.inference_mode():
        got = made(made.pack(ids, LENGTHS))
    torch.testing.assert_close(got, torch.cat(stock_rows(folder, ids)), atol=1e-5, rtol=1e-5)
    assert made.runs == "packed"


def test_an_attention_that_mixes_sequences_is_found_out(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    monkeypatch.setattr(attention, "attend", sdpa_attention_forward)
    made = loaded(make_model("bert"))
    monkeypatch.undo()
    attention.register()
    assert made.runs == "padded"


def test_a_layer_that_mixes_neighbours_a_little_is_found_out(make_model: Callable[..., Path]) -> None:
    made = encoder.load(make_model("bert"), CPU)

    def blend(module: torch.nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        before = torch.nn.functional.pad(out, (0, 0, 1, 0))[:, :-1]
        return out + 1e-4 * before

    made.model.embeddings.register_forward_hook(blend)
    selfcheck.choose(made, max_length=128)
    assert made.runs == "padded"


def test_a_layer_that_counts_masks_of_all_texts_is_found_out(make_model: Callable[..., Path]) -> None:
    """ESM scales its embeddings by how many tokens of the row are masked."""
    folder = make_model(
        "esm", position_embedding_type="rotary", token_dropout=True, mask_token_id=3, pad_token_id=1
    )
    made = loaded(folder)
    assert made.runs == "padded"
    ids = ids_of(LENGTHS)
    ids[5] = 3
    with torch.inference_mode():
        got = made(made.pack(ids, LENGTHS))
    torch.testing.assert_close(got, torch.cat(stock_rows(folder, ids)), atol=1e-5, rtol=1e-5)


def test_a_model_that_is_wrong_in_any_batch_does_not_start(make_model: Callable[..., Path]) -> None:
    made = encoder.load(make_model("bert"), CPU)
    made.model.embeddings.register_forward_hook(lambda module, args, out: out + out.mean((0, 1)))
    with pytest.raises(EngineStartFailed, match="in a batch"):
        selfcheck.choose(made, max_length=128)


def test_overflow_names_the_dtype(make_model: Callable[..., Path]) -> None:
    made = encoder.load(make_model("bert"), CPU, torch.float16)
    made.model.embeddings.register_forward_hook(lambda module, args, out: out * torch.inf)
    with pytest.raises(EngineStartFailed, match=r"overflows in float16.*bfloat16"):
        selfcheck.choose(made, max_length=128)


@pytest.mark.parametrize(
    ("dtype", "stored", "device", "want"),
    [
        ("auto", "bfloat16", "cpu", [torch.float32]),
        ("auto", "bfloat16", "cuda", [torch.bfloat16, torch.float32]),
        ("auto", "float32", "cuda", [torch.float16, torch.bfloat16, torch.float32]),
        ("auto", "", "cuda", [torch.float16, torch.bfloat16, torch.float32]),
        ("float32", "float16", "cuda", [torch.float32]),
        ("bfloat16", "float32", "cpu", [torch.bfloat16]),
    ],
)
def test_dtype_policy(dtype: str, stored: str, device: str, want: list[torch.dtype]) -> None:
    assert encoder.dtypes(dtype, stored, torch.device(device)) == want


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="int8"):
        encoder.dtypes("int8", "float32", CPU)


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float16, "overflows in float16: set dtype to bfloat16 or float32"),
        (torch.bfloat16, "overflows in bfloat16: set dtype to float32"),
        (torch.float32, "not finite in float32: its weights are of no use"),
    ],
)
def test_what_is_not_finite_names_what_may_be(
    make_model: Callable[..., Path], dtype: torch.dtype, advice: str
) -> None:
    made = encoder.load(make_model("bert"), CPU, dtype)
    made.model.embeddings.register_forward_hook(lambda module, args, out: out * torch.nan)
    with pytest.raises(selfcheck.WrongDtype, match=f"{advice}$"):
        selfcheck.choose(made, max_length=128)


@pytest.mark.parametrize("fault", ["CUBLAS_STATUS_ALLOC_FAILED when calling", "unspecified launch failure"])
def test_a_device_that_fails_is_no_matter_of_dtype(make_model: Callable[..., Path], fault: str) -> None:
    def fails(*given: Any) -> None:
        raise RuntimeError(f"CUDA error: {fault}")

    made = encoder.load(make_model("bert"), CPU, torch.float16)
    made.model.embeddings.register_forward_hook(fails)
    with pytest.raises(RuntimeError, match=f"^CUDA error: {fault}"):
        selfcheck.choose(made, max_length=128)


def test_a_model_without_operations_in_a_dtype_names_one(make_model: Callable[..., Path]) -> None:
    def refuses(module: Any, args: Any, out: torch.Tensor) -> None:
        if out.dtype != torch.float32:
            raise RuntimeError("expected scalar type Float but found Half\nhere")

    for dtype in (torch.float16, torch.float32):
        made = encoder.load(make_model("bert"), CPU, dtype)
        made.model.embeddings.register_forward_hook(refuses)
        if dtype == torch.float32:
            selfcheck.choose(made, max_length=128)
            continue
        with pytest.raises(selfcheck.WrongDtype, match=r"in float16: .* found Half; set dtype to float32$"):
            selfcheck.choose(made, max_length=128)


def test_weights_that_lack_a_layer_do_not_load(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert")
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineStartFailed, match=r"lack encoder\.layer\.1\.output\.dense\.weight"):
        encoder.load(folder, CPU)


def test_weights_of_another_shape_do_not_load(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    name = r"encoder\.layer\.0\.intermediate\.dense\.bias"
    said = rf"{name} is \[48\] in the weights and \[40\] by config\.json$"
    with pytest.raises(EngineStartFailed, match=said):
        encoder.load(folder, CPU)


def test_a_setting_of_another_type_is_named_with_what_it_must_be(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "big"}))
    with pytest.raises(ConfigError, match=r"hidden_size.*: .*expected int.*'big'"):
        encoder.load(folder, CPU)


def test_a_checkpoint_without_weights_is_refused(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="safetensors"):
        encoder.load(folder, CPU)


def test_old_weights_are_read_as_tensors(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert")
    expected = encoder.load(folder, CPU).model.state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    got = encoder.load(folder, CPU).model.state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_old_weights_with_code_in_them_do_not_run_it(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Path("a class that is not a tensor")}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="Weights only load failed"):
        encoder.load(folder, CPU)


def test_the_pooler_is_not_needed(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert")
    weights = {
        k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("pooler.")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert encoder.load(folder, CPU).model.pooler is None


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForSequenceClassification])
def test_an_encoder_decoder_is_refused_whatever_its_weights_lack(
    make_model: Callable[..., Path], kind: Any
) -> None:
    folder = make_model("bart", d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=48)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("decoder")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="bart is an encoder-decoder"):
        encoder.load_model(kind, folder, CPU, torch.float32)


T5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}


def test_a_t5_classifier_of_whole_texts_is_refused(make_model: Callable[..., Path]) -> None:
    folder = make_model("t5", auto=AutoModelForSequenceClassification, **T5)
    with pytest.raises(ConfigError, match="t5 is an encoder-decoder"):
        encoder.load_model(AutoModelForSequenceClassification, folder, CPU, torch.float32)


def test_a_text_is_as_long_as_the_class_has_positions_where_config_json_is_silent(
    make_model: Callable[..., Path],
) -> None:
    folder = make_model("roberta", max_position_embeddings=512)
    config = json.loads((folder / "config.json").read_text())
    del config["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    assert encoder.load(folder, CPU).positions == 510


@pytest.mark.parametrize(
    ("family", "overrides", "positions"),
    [
        ("bert", {}, 130),
        ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 90}, 90),
        ("gpt2", {}, 130),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, 130),
        ("nomic_bert", {}, 0),
        ("bert", {"max_seq_len": 90}, 130),
    ],
)
def test_families_name_their_positions_differently(
    make_model: Callable[..., Path], family: str, overrides: dict[str, Any], positions: int
) -> None:
    assert encoder.load(make_model(family, **overrides), CPU).positions == positions


def test_a_padding_id_outside_the_table_is_not_filled_in(make_model: Callable[..., Path]) -> None:
    folder = make_model("gemma2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": -1}))
    ids = ids_of(LENGTHS)
    made = loaded(folder)
    assert made.runs == "padded"
    with torch.inference_mode():
        got = made(made.pack(ids, LENGTHS))
    torch.testing.assert_close(got, torch.cat(stock_rows(folder, ids)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rest", [{}, {"intermediate_size": 40}])
def test_weights_of_code_that_is_not_run_say_so(
    make_model: Callable[..., Path], rest: dict[str, Any]
) -> None:
    folder = make_model("bert")
    weights = load_file(folder / "model.safetensors")
    weights.pop("embeddings.position_embeddings.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineStartFailed) as without:
        encoder.load(folder, CPU)
    assert "auto_map" not in str(without.value)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoModel": "some/where--modeling_bert.JinaBertModel"}
    (folder / "config.json").write_text(json.dumps({**config, **rest, "auto_map": own}))
    with pytest.raises(EngineStartFailed, match=r"config\.json names code of its own \(auto_map\)") as caught:
        encoder.load(folder, CPU)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", COMMON)
def test_on_a_gpu_as_on_the_cpu(make_model: Callable[..., Path], family: str, dtype: str) -> None:
    folder = make_model(family)
    ids = ids_of(LENGTHS)
    made = loaded(folder, torch.device("cuda"), dtype)
    with torch.inference_mode():
        got = made(made.pack(ids, LENGTHS)).float().cpu()
    want = torch.cat(stock_rows(folder, ids))
    limit = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}[dtype]
    assert (got - want).norm() / want.norm() < limit
    assert made.runs == ("packed" if family in PACKED else "padded")
