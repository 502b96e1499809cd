"""tokenizer.json with what tokenizer_config.json makes of it, against Transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from gpu_server.errors import ConfigError
from gpu_server.models.text.checkpoint import read

MakeModel = Callable[..., Path]
END = "<|endoftext|>"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "Hello", "cafe", "café", "w", "猫", "猫猫"]
TEXTS = ["Hello café 猫猫", "hello cafe", "CAFÉ"]


def ours(folder: Path) -> Tokenizer:
    return Tokenizer.from_str(read(folder).tokenizer_json.decode())


def configure(folder: Path, **config: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def word_pieces(folder: Path, **options: Any) -> None:
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("saved", "config"),
    [
        ({"lowercase": True}, {"do_lower_case": False}),
        ({"lowercase": False}, {"do_lower_case": True}),
        ({"lowercase": True}, {"do_lower_case": True, "strip_accents": False}),
        ({"lowercase": True, "strip_accents": False}, {"do_lower_case": True, "strip_accents": None}),
        ({"lowercase": False}, {"do_lower_case": False, "strip_accents": True}),
        ({"lowercase": True}, {"do_lower_case": True, "tokenize_chinese_chars": False}),
    ],
)
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bert", "BertTokenizer"),
        ("bert", "BertTokenizerFast"),
        ("bert", None),
        ("distilbert", "DistilBertTokenizer"),
        ("electra", "ElectraTokenizer"),
        ("mpnet", "MPNetTokenizer"),
        ("nomic_bert", None),
    ],
)
def test_what_bert_tokenizers_say_counts(
    make_model: MakeModel, family: str, name: str | None, saved: dict[str, Any], config: dict[str, Any]
) -> None:
    folder = make_model(family)
    word_pieces(folder, **saved)
    before = Tokenizer.from_file(str(folder / "tokenizer.json"))
    configure(folder, **config, **({"tokenizer_class": name} if name else {}))
    theirs = AutoTokenizer.from_pretrained(folder)
    want = [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [ours(folder).encode(text, add_special_tokens=False).ids for text in TEXTS] == want
    assert [before.encode(text, add_special_tokens=False).ids for text in TEXTS] != want


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"model_type": "modernbert", "classifier_dropout": 0.0}, "BertTokenizer"),
        ({"model_type": "nystromformer"}, "BertTokenizerFast"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, None),
        ({"model_type": "convbert"}, None),
        ({"model_type": "layoutlm"}, None),
        ({"model_type": "megatron-bert"}, None),
        ({"model_type": "squeezebert"}, None),
    ],
)
def test_the_kind_of_model_decides_whether_they_are_asked(
    make_model: MakeModel, model: dict[str, Any], name: str | None
) -> None:
    folder = make_model("bert")
    word_pieces(folder, lowercase=True)
    configure(folder, do_lower_case=False, **({"tokenizer_class": name} if name else {}))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **model}))
    theirs = AutoTokenizer.from_pretrained(folder)
    want = [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [ours(folder).encode(text, add_special_tokens=False).ids for text in TEXTS] == want


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "BertTokenizer"},
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True},
    ],
)
def test_the_file_counts_where_they_say_nothing_else(make_model: MakeModel, config: dict[str, Any]) -> None:
    folder = make_model("bert")
    word_pieces(folder, lowercase=False)
    configure(folder, **config)
    assert read(folder).tokenizer_json == (folder / "tokenizer.json").read_bytes()


def bytes_with_end(folder: Path, post_processor: Any = None, **config: Any) -> None:
    """A tokenizer like that of gte-Qwen2, whose own code adds the end token."""
    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    code = {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]}
    configure(folder, **{"eos_token": END, "add_eos_token": True, "auto_map": code, **config})


@pytest.mark.parametrize("post_processor", [None, processors.ByteLevel(trim_offsets=False)])
@pytest.mark.parametrize("token", [END, {"content": END, "special": True}])
def test_an_end_token_that_code_would_add(make_model: MakeModel, post_processor: Any, token: Any) -> None:
    folder = make_model("qwen2", pooling="lasttoken", vocab_size=257)
    bytes_with_end(folder, post_processor, eos_token=token)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made = ours(folder)
    assert made.encode("ab").ids == [*plain.encode("ab").ids, 256]
    pair = made.encode("ab", "c")
    assert pair.ids == [*plain.encode("ab").ids, 256, *plain.encode("c").ids, 256]
    assert pair.type_ids == [0, 0, 0, 1, 1]
    assert pair.offsets == [(0, 1), (1, 2), (0, 0), (0, 1), (0, 0)]
    made.enable_truncation(3)
    assert made.encode("abcdef").ids == [*plain.encode("ab").ids, 256]


@pytest.mark.parametrize("config", [{"add_eos_token": False}, {"auto_map": None}])
def test_no_end_token_without_both_signs(make_model: MakeModel, config: dict[str, Any]) -> None:
    folder = make_model("qwen2", vocab_size=257)
    bytes_with_end(folder, **config)
    assert read(folder).tokenizer_json == (folder / "tokenizer.json").read_bytes()


def test_an_end_token_that_is_there_is_not_added(make_model: MakeModel) -> None:
    folder = make_model("qwen2", vocab_size=257)
    bytes_with_end(folder, processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 256)]))
    assert read(folder).tokenizer_json == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("post_processor", "token"),
    [
        (processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 256)]), END),
        (None, "<|nothing|>"),
        (None, None),
    ],
)
def test_one_that_cannot_be_added_is_refused(make_model: MakeModel, post_processor: Any, token: Any) -> None:
    folder = make_model("qwen2", vocab_size=257)
    bytes_with_end(folder, post_processor, eos_token=token)
    with pytest.raises(ConfigError, match="add_eos_token"):
        read(folder)


def of_bytes(folder: Path, pre_tokenizer: Any, *, roberta: bool, roberta_space: bool = False) -> None:
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizer
    if roberta:
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), add_prefix_space=roberta_space
        )
    tokenizer.add_special_tokens(words[:6])
    tokenizer.save(str(folder / "tokenizer.json"))


def assert_equal_to_theirs(folder: Path, texts: list[str], *, differs: bool = True) -> None:
    """differs: whether tokenizer.json alone gives others."""
    theirs = AutoTokenizer.from_pretrained(folder)
    want = [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert [ours(folder).encode(text, add_special_tokens=False).ids for text in texts] == want
    before = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ([before.encode(text, add_special_tokens=False).ids for text in texts] != want) == differs


@pytest.mark.parametrize("space", [True, False])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("roberta", "RobertaTokenizer"),
        ("roberta", "RobertaTokenizerFast"),
        ("roberta", None),
        ("longformer", "LongformerTokenizer"),
        ("longformer", None),
        ("deberta", "DebertaTokenizer"),
        ("gpt2", "GPT2Tokenizer"),
        ("qwen3", None),
        ("qwen2", "Qwen2Tokenizer"),
        ("bert", "GPT2Tokenizer"),
    ],
)
def test_a_space_before_a_text_as_byte_tokenizers_say(
    make_model: MakeModel, family: str, name: str | None, space: bool
) -> None:
    folder = make_model("bert")
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    of_bytes(
        folder,
        pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=not space)]),
        roberta=family in ("roberta", "longformer"),
        roberta_space=not space,
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    configure(folder, add_prefix_space=space, **special, **({"tokenizer_class": name} if name else {}))
    assert_equal_to_theirs(folder, ["ab", " ab", "a b"])
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ("ab", " ab"):
        want = theirs(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert ours(folder).encode(text, add_special_tokens=False).offsets == want


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("modernbert", {"add_prefix_space": True, "tokenizer_class": "RobertaTokenizer"}),
        ("mistral", {"add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"}),
        ("roberta", {"add_prefix_space": True, "tokenizer_class": "PreTrainedTokenizerFast"}),
        ("roberta", {"add_prefix_space": False}),
    ],
)
def test_no_space_where_none_is_asked_for(make_model: MakeModel, family: str, config: dict[str, Any]) -> None:
    folder = make_model("bert")
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    of_bytes(folder, pre_tokenizers.ByteLevel(add_prefix_space=False), roberta=True)
    configure(folder, **config)
    assert_equal_to_theirs(folder, ["ab", " ab", "a b"], differs=False)
    assert read(folder).tokenizer_json == (folder / "tokenizer.json").read_bytes()


def token(content: str, **traits: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
    return {"content": content, **plain, **traits}


@pytest.mark.parametrize("name", ["BertTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    ("listed", "differs"),
    [
        ({"12": token("w hello")}, True),
        ({"12": token("zz"), "13": token("yy")}, True),
        ({"13": token("yy"), "7": token("zz")}, True),
        ({"5": token("hello", single_word=True)}, False),
        ({"4": token("[MASK]", lstrip=True, special=True)}, False),
        ({"4": token("[MASK]", special=True)}, False),
    ],
)
def test_tokens_of_the_config_are_added(
    make_model: MakeModel, name: str, listed: dict[str, Any], differs: bool
) -> None:
    folder = make_model("bert")
    word_pieces(folder, lowercase=True)
    special = {"0": "[PAD]", "1": "[UNK]", "2": "[CLS]", "3": "[SEP]"}
    listed = {**{key: token(word, special=True) for key, word in special.items()}, **listed}
    configure(folder, tokenizer_class=name, added_tokens_decoder=listed)
    texts = ["w hello", "hello zz w", "yyzz cafe", "a [MASK] b"]
    assert_equal_to_theirs(folder, texts, differs=differs)


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        (["zz"], "added_tokens_decoder must be an object"),
        ({"12": "zz"}, "12 must be an object"),
        ({"12": {"content": 3}}, "added_tokens_decoder cannot be used"),
        ({"last": token("zz")}, "added_tokens_decoder cannot be used"),
    ],
)
def test_tokens_that_are_none_are_refused(make_model: MakeModel, listed: Any, named: str) -> None:
    folder = make_model("bert")
    configure(folder, added_tokens_decoder=listed)
    with pytest.raises(ConfigError, match=rf"tokenizer_config\.json: {named}"):
        read(folder)


@pytest.mark.parametrize("saved", [3, [3], [{"id": 12}]])
def test_a_tokenizer_with_tokens_that_are_none_is_refused(make_model: MakeModel, saved: Any) -> None:
    folder = make_model("bert")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens": saved}))
    configure(folder, added_tokens_decoder={"12": token("zz")})
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be used"):
        read(folder)
