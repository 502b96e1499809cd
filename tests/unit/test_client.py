"""`Client` against a fake daemon: what it sends, what it refuses itself, what it remembers."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest

from gpu_server.calls import raise_item_errors, to_tensors
from gpu_server.client import Client
from gpu_server.connection import Reply
from gpu_server.errors import (
    DeadlineExceeded,
    EndpointError,
    InvalidRequest,
    ModelFailed,
    ModelLoading,
    ModelNotFound,
    StaleTokenizer,
    TooLarge,
    Unavailable,
    UnsupportedOperation,
)
from gpu_server.testing import FakeModel, FakeServer, byte_tokenizer, echo_model, embedding_model, fake_vector
from gpu_server.tokenizing import TextTokenizer, digest
from gpu_server.wire import ItemError, Limits, ReplyHeader, Tensor
from gpu_server.wire.documents import InputInfo, ModelInfo, TextInfo


def unit(text: str) -> np.ndarray:
    vector = fake_vector([256, *text.encode(), 257])
    return vector / np.linalg.norm(vector)


def test_nothing_is_connected_before_the_first_call() -> None:
    client = Client("ipc:///nonexistent/s")
    with pytest.raises(Unavailable):
        client.embed("a")
    with pytest.raises(EndpointError):
        Client("nonsense")


def test_embeddings(client: Client) -> None:
    got = client.embed(["a", "b"])
    assert (got.dtype, got.shape) == (np.float32, (2, 8))
    np.testing.assert_allclose(got, [unit("a"), unit("b")], rtol=1e-5)
    np.testing.assert_allclose(client.embed("a"), [unit("a")], rtol=1e-5)
    assert client.embed([]).shape == (0, 8)
    assert client.embed([], dimensions=4).shape == (0, 4)
    raw = client.embed("a", normalize=False, dimensions=4)
    np.testing.assert_allclose(raw, [fake_vector([256, 97, 257])[:4]], rtol=1e-5)
    np.testing.assert_allclose(client.embed("a", prompt_name="query"), [unit("query: a")], rtol=1e-5)


def test_the_tokenizer_and_the_facts_are_fetched_once(server: FakeServer, client: Client) -> None:
    for _ in range(3):
        client.embed("a")
    assert server.requests == {"hello": 1, "tokenizer": 1, "infer": 3}


def test_any_number_of_texts_goes_in_requests_the_server_takes() -> None:
    with FakeServer(limits=Limits(max_items=10)) as server, Client(server.endpoint) as client:
        texts = [str(number) for number in range(35)]
        got = client.embed(texts)
        np.testing.assert_allclose(got, [unit(text) for text in texts], rtol=1e-5)
        assert server.requests["infer"] == 4


@pytest.mark.parametrize("tokenised", [True, False])
def test_texts_are_split_by_bytes_too(monkeypatch: pytest.MonkeyPatch, tokenised: bool) -> None:
    model = embedding_model()

    def embed(inputs: dict[str, Tensor], params: dict[str, object]) -> object:
        if "text" in inputs:
            rows = [[256, *text, 257] for text in inputs["text"].raw_strings()]
            inputs = {"input_ids": Tensor.from_rows(rows, "i32")}
        return model.handler(inputs, params)

    limits = Limits(max_frame_bytes=700, max_request_bytes=600)
    fake = FakeModel(model.info, embed, model.tokenizer)  # type: ignore[arg-type]
    if not tokenised:
        monkeypatch.setitem(sys.modules, "tokenizers", None)
    with FakeServer(fake, limits=limits) as server, Client(server.endpoint) as client:
        texts = [str(number) * 10 for number in range(100)]
        np.testing.assert_allclose(client.embed(texts), [unit(text) for text in texts], rtol=1e-5)
        with pytest.raises(TooLarge):
            client.text_request(texts)


def test_results_are_the_callers_to_change(client: Client) -> None:
    client.embed("a")[0, 0] = 7
    got = client.infer("echo", dense=[[1, 2], [3, 4]], ragged=[[1, 2], [3]])
    for values in (got["dense"], got["ragged"]):
        values[0][0] = 7
        assert values[0].tolist() == [7, 2]


def test_values_come_back_as_they_were_sent(client: Client) -> None:
    sent = {
        "f": np.arange(6, dtype=np.float64).reshape(2, 3),
        "ragged": [[1, 2, 3], [4]],
        "s": ["", "ü"],
        "b": [b"\0", b""],
        "flags": [True, False],
    }
    got = client.infer("echo", **sent)
    assert list(got) == list(sent)
    np.testing.assert_array_equal(got["f"], sent["f"])
    assert [row.tolist() for row in got["ragged"]] == sent["ragged"]
    assert (got["s"], got["b"], got["flags"].tolist()) == (sent["s"], sent["b"], sent["flags"])


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"x": "one string"}, "input 'x': an input is a list"),
        ({"x": [object()]}, "input 'x': numbers expected"),
        ({"x": ["a", 1]}, "input 'x': a list of strings must hold only str"),
        ({"x": []}, "input 'x' has no items"),
        ({}, "needs at least one input"),
    ],
)
def test_bad_values_are_named_before_they_are_sent(
    server: FakeServer, client: Client, inputs: dict[str, object], reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        client.infer("echo", **inputs)
    assert "infer" not in server.requests


def test_declared_inputs_decide_the_wire_type() -> None:
    inputs = (InputInfo("ids", "i32", (-1,)), InputInfo("x", "f16", (2,)))
    model = FakeModel(ModelInfo(name="m", inputs=inputs), lambda given, params: dict(given))
    with FakeServer(model) as server, Client(server.endpoint) as client:
        reply = client.infer_request("m", {"ids": [[1, 2], [3, 4]], "x": [[1, 2], [3, 4]]})
        assert reply.outputs["ids"].signature == ("i32", (-1,))
        assert reply.outputs["x"].signature == ("f16", (2,))
        with pytest.raises(InvalidRequest, match="'ids': values outside int32"):
            client.infer("m", ids=[[2**31]], x=[[1, 2]])
        with pytest.raises(InvalidRequest, match="takes the inputs: ids, x; got: ids"):
            client.infer("m", ids=[[1]])


def test_limits_are_kept_before_sending() -> None:
    limits = Limits(max_items=4, max_frame_bytes=1000, max_request_bytes=1500, max_text_bytes=100)
    with FakeServer(limits=limits) as server, Client(server.endpoint) as client:
        for inputs, limit in (
            ({"x": [1] * 5}, "max_items"),
            ({"x": [b"a" * 1001]}, "max_frame_bytes"),
            ({"x": [b"a" * 900], "y": [b"a" * 900]}, "max_request_bytes"),
            ({"text": ["a", "é" * 51]}, "max_text_bytes"),
        ):
            with pytest.raises(TooLarge, match=f"exceed {limit} = ") as error:
                client.infer("echo", **inputs)
            assert error.value.details == {"limit": limit}
        assert "infer" not in server.requests
        assert client.infer("echo", other=["é" * 51])["other"] == ["é" * 51]


def test_bad_texts_are_named(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="text 1 is int, not str"):
        client.embed(["a", 3])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="input 0 has 102 tokens, more than max_length = 64"):
        client.embed("a" * 100, truncate=False)


def test_models_by_name(server: FakeServer, client: Client) -> None:
    assert [m.name for m in client.models()] == ["fake/embedding", "echo"]
    assert client.model().name == "fake/embedding"
    with pytest.raises(ModelNotFound, match="'nope' is not served; served: fake/embedding, echo"):
        client.infer("nope", x=[1])
    with pytest.raises(UnsupportedOperation, match="'echo' takes no text"):
        client.embed("a", model="echo")
    server.models["nope"] = echo_model("nope")
    assert client.infer("nope", x=[1])["x"].tolist() == [1]


def test_while_models_load(server: FakeServer, client: Client) -> None:
    server.state = "loading"
    with pytest.raises(ModelLoading):
        client.embed("a")
    assert client.status().state == "loading"
    server.state = "ready"
    assert client.embed("a").shape == (1, 8)


def test_per_item_errors_name_the_callers_item() -> None:
    header = ReplyHeader(v=1, id=b"-", item_errors=(ItemError(1, "model_failed", "NaN"),))
    raise_item_errors(Reply(ReplyHeader(v=1, id=b"-"), {}))
    with pytest.raises(ModelFailed, match="item 11: NaN") as error:
        raise_item_errors(Reply(header, {}), first=10)
    assert error.value.details == {"item": 11}


def test_threads_that_need_the_tokenizer_first_load_it_once(
    server: FakeServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[TextTokenizer] = []
    all_ask = threading.Barrier(8)

    def embed(_: int) -> object:
        all_ask.wait(10)
        return client.embed("a")

    client.hello()
    monkeypatch.setattr(TextTokenizer, "prepare", lambda self: built.append(self))
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(embed, range(8)))) == 8
    assert (len(built), server.requests["tokenizer"]) == (1, 1)


def test_who_waits_for_a_tokenizer_waits_no_longer_than_its_deadline(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hangs(tokenizer: TextTokenizer) -> None:
        begun.set()
        assert go_on.wait(30)

    monkeypatch.setattr(TextTokenizer, "prepare", hangs)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.tokenizer)
        assert begun.wait(10)
        with pytest.raises(DeadlineExceeded, match="tokenizer of model"):
            client.tokenizer(timeout_s=0.1)
        go_on.set()
        assert first.result(10) is client.tokenizer()


def test_a_stale_tokenizer_is_fetched_anew(server: FakeServer, client: Client) -> None:
    client.embed("a")
    model = server.models["fake/embedding"]
    other = byte_tokenizer().replace(b'"[CLS]"', b'"[BOS]"')
    assert model.info.text is not None
    model.info.text = msgspec.structs.replace(model.info.text, digest=digest(other))
    model.tokenizer, handler = other, model.handler
    seen = []

    def check(inputs: dict[str, Tensor], params: object) -> object:
        seen.append(len(seen))
        if len(seen) == 1:
            raise StaleTokenizer("changed", {"digest": digest(other)})
        return handler(inputs, params)  # type: ignore[arg-type]

    model.handler = check  # type: ignore[assignment]
    np.testing.assert_allclose(client.embed("a"), [unit("a")], rtol=1e-5)
    assert server.requests == {"hello": 2, "tokenizer": 2, "infer": 3}
    tokenizer = client.tokenizer()
    assert tokenizer is not None
    assert tokenizer.tokenize(["a"])[0].tokens[0] == "[BOS]"


def test_inputs_of_a_model_that_has_been_replaced_are_asked_for_anew() -> None:
    def double(inputs: dict[str, Tensor], params: object) -> dict[str, object]:
        return {"y": [2 * x for x in next(iter(inputs.values())).to_numpy().tolist()]}

    model = FakeModel(ModelInfo(name="m", version="1", inputs=(InputInfo("x", "i64"),)), double)  # type: ignore[arg-type]
    with FakeServer(model) as server, Client(server.endpoint, timeout_s=10) as client:
        assert list(client.infer(x=[1])["y"]) == [2]
        model.info = ModelInfo(name="m", version="2", inputs=(InputInfo("z", "i64"),))
        assert list(client.infer(z=[2])["y"]) == [4]
        with pytest.raises(InvalidRequest, match="takes the inputs: z; got: x"):
            client.infer(x=[1])
        assert server.requests == {"hello": 3, "infer": 2}


def test_a_tokenizer_that_stays_stale_is_an_error(server: FakeServer, client: Client) -> None:
    def stale(inputs: object, params: object) -> dict[str, object]:
        raise StaleTokenizer("changed")

    server.models["fake/embedding"].handler = stale
    with pytest.raises(StaleTokenizer):
        client.embed("a")
    assert server.requests["infer"] == 2


def test_models_that_share_a_tokenizer_keep_their_own_limits() -> None:
    models = [embedding_model("long"), embedding_model("short", max_length=5)]
    with FakeServer(*models) as server, Client(server.endpoint) as client:
        long = client.embed("abcdefgh", model="long")
        np.testing.assert_allclose(long, [unit("abcdefgh")], rtol=1e-5)
        np.testing.assert_allclose(client.embed("abcdefgh", model="short"), [unit("abc")], rtol=1e-5)
        assert client.embed("x" * 30, model="long", truncate=False).shape == (1, 8)


def test_without_the_tokenizers_package_text_is_sent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], dict[str, object]]] = []

    def embed(inputs: dict[str, Tensor], params: dict[str, object]) -> dict[str, object]:
        seen.append((inputs["text"].strings(), params))
        return {"embedding": np.zeros((inputs["text"].items, 8), np.float32)}

    model = embedding_model()
    with FakeServer(FakeModel(model.info, embed, model.tokenizer)) as server:  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        with Client(server.endpoint) as client:
            client.embed(["a", "ü"], truncate=False, direction="left", prompt_name="query", normalize=False)
            with pytest.raises(InvalidRequest, match="text 1 holds a lone surrogate"):
                client.embed(["ok", "\ud800"])
            assert client.tokenizer() is None
    assert seen == [
        (
            ["a", "ü"],
            {"truncate": False, "truncation_direction": "left", "prompt_name": "query", "normalize": False},
        )
    ]


def test_metrics_and_text_info(client: Client) -> None:
    assert "gpu_server_fake 1" in client.metrics()
    assert isinstance(client.model().text, TextInfo)


def test_a_model_answers_to_the_last_part_of_its_name() -> None:
    with FakeServer() as server, Client(server.endpoint) as client:
        assert client.model("embedding").name == "fake/embedding"
        with pytest.raises(ModelNotFound):
            client.model("fake")


def test_infer_sends_text_to_a_text_model() -> None:
    info = embedding_model().info
    assert to_tensors(info, {"text": ["ä", "b"]})["text"].strings() == ["ä", "b"]
    with pytest.raises(InvalidRequest, match="text"):
        to_tensors(info, {"text": [1]})
    with pytest.raises(InvalidRequest, match="takes the inputs: text or input_ids; got: text, more"):
        to_tensors(info, {"text": ["a"], "more": [1]})
    with pytest.raises(InvalidRequest, match="takes the inputs: text or input_ids; got: txt"):
        to_tensors(info, {"txt": ["a"]})
    pairs = msgspec.structs.replace(info, kind="reranker")
    with pytest.raises(
        InvalidRequest, match=r"takes the inputs: text \(and text_pair\) or input_ids; got: txt"
    ):
        to_tensors(pairs, {"txt": ["a"]})
