"""Text that the daemon tokenises: it leaves the loop, comes back, and meets cancels, deadlines and drains on the way."""

from __future__ import annotations

import threading
import weakref
from typing import cast

import pytest
from daemon_fakes import FakeLink
from msgspec.structs import replace
from service_world import NUMBERS, TEXT, World

from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.text import THREADS, TextPool
from gpu_server.daemon.text_ledger import MAX_TOKENIZING
from gpu_server.errors import InternalError, InvalidRequest, RemoteError
from gpu_server.testing import byte_tokenizer
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire import Tensor, Tensors
from gpu_server.wire.documents import TextInfo


@pytest.fixture
def world() -> World:
    return World()


def queued_ids(world: World) -> list[list[int]]:
    world.service.dispatch()
    return [row.tolist() for row in world.link.sent[-1].inputs()["input_ids"].rows()]


def test_text_becomes_ids_and_is_queued(world: World) -> None:
    world.text("ab", "")
    assert world.service.open_requests == 1
    world.pool.turn()
    assert queued_ids(world) == [[256, 97, 98, 257], [256, 257]]
    assert world.link.sent[-1].cost == 6


def test_options_reach_the_tokenizer_and_not_the_model(world: World) -> None:
    world.text("a" * 20 + "z", params={"truncation_direction": "left"})
    world.pool.turn()
    ids = queued_ids(world)[0]
    assert (len(ids), ids[-2]) == (16, ord("z"))
    assert world.link.sent[-1].params == {}


def test_a_text_is_cut_on_the_models_own_side(world: World) -> None:
    assert TEXT.text is not None
    world.link.models["text"] = replace(TEXT, text=replace(TEXT.text, truncation_direction="left"))
    world.service.engine_ready(cast(EngineLink, world.link))
    world.text("a" * 20 + "z")
    world.pool.turn()
    assert queued_ids(world)[0][-2] == ord("z")


@pytest.mark.parametrize(("params", "wanted"), [({}, {"prompt_length": 3}), ({"prompt_name": "d"}, {})])
def test_the_length_of_a_prompt_that_is_not_pooled_goes_to_the_model(
    world: World, params: dict[str, str], wanted: dict[str, int]
) -> None:
    assert TEXT.text is not None
    text = replace(TEXT.text, prompts={"q": "Q:", "d": "D"}, default_prompt="q", prompt_lengths={"q": 3})
    world.link.models["text"] = replace(TEXT, text=text, params={"prompt_length": 0})
    world.service.engine_ready(cast(EngineLink, world.link))
    world.text("a", params=params)
    world.pool.turn()
    world.service.dispatch()
    assert world.link.sent[-1].params == wanted


def test_bad_options_and_over_long_texts_are_refused_at_once(world: World) -> None:
    world.text("a", id=b"1", params={"truncate": "yes"})
    world.text("a", "b" * 101, id=b"2")
    assert world.outcomes() == [(b"1", "invalid_request"), (b"2", "too_large")]
    assert world.pool.waiting == []
    world.assert_nothing_is_kept()


def test_an_error_of_the_tokenizer_is_the_reply(world: World) -> None:
    world.text("a")
    world.pool.turn(InvalidRequest("no such prompt"))
    assert world.outcomes() == [(b"1", "invalid_request")]
    world.assert_nothing_is_kept()


def test_text_for_a_model_without_is_refused(world: World) -> None:
    world.ask(inputs={"text": Tensor.from_strings(["a"])}, model="numbers")
    assert world.outcomes() == [(b"1", "unsupported_operation")]


def test_cancelled_text_is_answered_once(world: World) -> None:
    world.text("a", id=b"a")
    world.ask(op="cancel", id=b"c", target=b"a")
    world.pool.turn()
    assert [header.id for _, header, _ in world.replies] == [b"a", b"c"]
    world.assert_nothing_is_kept()


def test_an_id_used_again_after_a_cancel_gets_its_own_text(world: World) -> None:
    world.text("old", id=b"a")
    world.ask(op="cancel", id=b"c", target=b"a")
    world.text("new", id=b"a")
    world.pool.turn()
    world.pool.turn()
    assert queued_ids(world) == [[256, *b"new", 257]]
    assert world.service.open_requests == 1


def test_an_id_is_outstanding_while_its_text_is_tokenised(world: World) -> None:
    world.text("a", id=b"a")
    world.text("b", id=b"a")
    assert world.outcomes() == [(b"a", "invalid_request")]


def test_a_deadline_that_passes_meanwhile_is_said_so(world: World) -> None:
    world.text("a", deadline_ms=100)
    assert world.service.next_deadline() == pytest.approx(world.clock() + 0.1)
    world.clock.advance(0.1)
    world.service.expire()
    world.pool.turn()
    assert world.outcomes() == [(b"1", "deadline_exceeded")]
    world.assert_nothing_is_kept()


def test_texts_that_wait_are_bounded(world: World) -> None:
    """One sender gets three quarters of the room; the next one then finds some."""
    alone = MAX_TOKENIZING * 3 // 4
    for number in range(alone + 1):
        world.text("", id=b"%d" % number)
    assert world.outcomes() == [(b"%d" % alone, "overloaded")]
    world.text("", id=b"other", peer=b"other")
    assert len(world.pool.waiting) == alone + 1


def test_the_tokenizer_is_handed_out_as_it_is(world: World) -> None:
    world.ask(op="tokenizer", model="text")
    assert world.replies[-1][2]["tokenizer"].raw_strings() == [byte_tokenizer()]
    world.ask(op="tokenizer", model="numbers")
    assert world.outcomes()[-1] == (b"1", "unsupported_operation")


def test_a_peer_that_goes_while_its_deadlines_pass_is_no_trouble(world: World) -> None:
    """The first reply finds the connection gone, which drops the others."""
    for number in range(3):
        world.text("a", id=b"%d" % number, deadline_ms=100)
    world.service._send = lambda peer, frames: world.service.peer_gone(peer)
    world.clock.advance(0.1)
    world.service.expire()
    assert world.service.open_requests == 0
    world.service.fail_all(InternalError("stop"))


def test_text_nobody_waits_for_is_not_tokenised(world: World) -> None:
    world.text("a", id=b"late", deadline_ms=100)
    world.text("b", id=b"cancelled")
    world.text("c", id=b"gone", peer=b"other")
    world.text("d", id=b"wanted")
    world.ask(op="cancel", id=b"c", target=b"cancelled")
    world.service.peer_gone(b"other")
    world.clock.advance(0.1)
    world.service.expire()
    assert world.pool.cancelled() == [True, True, True, False]


def test_the_bytes_of_waiting_texts_are_bounded(world: World) -> None:
    for number in range(10):
        world.text("x" * 90, id=b"%d" % number, peer=b"%d" % number)
    assert world.outcomes() == [(b"8", "overloaded"), (b"9", "overloaded")]


def test_ids_made_for_the_engine_before_are_refused_by_the_next(world: World) -> None:
    world.text("a")
    other = replace(TEXT, text=replace(TEXT.text, digest="e" * 64))
    world.link = FakeLink(NUMBERS, other)
    world.link.tokenizers["text"] = byte_tokenizer()
    world.service.engine_ready(cast(EngineLink, world.link))
    world.pool.turn()
    assert world.outcomes() == [(b"1", "stale_tokenizer")]


def test_queued_ids_do_not_reach_an_engine_with_another_tokenizer(world: World) -> None:
    world.lose_engine()
    world.text("a")
    world.pool.turn()
    other = replace(TEXT, text=replace(TEXT.text, digest="e" * 64))
    world.link = FakeLink(NUMBERS, other)
    world.link.tokenizers["text"] = byte_tokenizer()
    world.service.engine_ready(cast(EngineLink, world.link))
    assert world.outcomes() == [(b"1", "stale_tokenizer")]
    world.service.dispatch()
    assert world.link.sent == []


class TestPool:
    """The real pool, with threads."""

    def run(
        self, pool: TextPool, woken: threading.Event, texts: list[str], **options: str
    ) -> Tensors | RemoteError:
        got: list[Tensors | RemoteError] = []
        pool.submit("text", {"text": Tensor.from_strings(texts)}, options, got.append)
        assert woken.wait(10)
        assert got == []
        pool.collect()
        return got[0]

    @pytest.fixture
    def woken(self) -> threading.Event:
        return threading.Event()

    @pytest.fixture
    def pool(self, woken: threading.Event) -> TextPool:
        assert TEXT.text is not None
        pool = TextPool(woken.set)
        pool.add("text", TEXT.text, byte_tokenizer())
        return pool

    def test_results_wait_for_the_loop(self, pool: TextPool, woken: threading.Event) -> None:
        outcome = self.run(pool, woken, ["a"])
        assert isinstance(outcome, dict)
        assert [row.tolist() for row in outcome["input_ids"].rows()] == [[256, 97, 257]]
        pool.close()

    def test_errors_are_results_too(self, pool: TextPool, woken: threading.Event) -> None:
        assert isinstance(self.run(pool, woken, ["a"], prompt_name="nope"), InvalidRequest)
        pool.close()

    def test_a_tokenizer_that_breaks_is_an_answer(
        self, pool: TextPool, woken: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def breaks(*args: object, **options: object) -> None:
            raise Exception("bare, as the library raises it")

        monkeypatch.setattr(TextTokenizer, "encode", breaks)
        assert isinstance(self.run(pool, woken, ["a"]), InternalError)
        pool.close()

    def test_a_cancelled_text_is_let_go_of_before_its_turn(
        self, pool: TextPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Texts(dict[str, Tensor]):
            """Can be referred to weakly, as a dict cannot."""

        gate = threading.Event()
        monkeypatch.setattr(TextTokenizer, "inputs", lambda *args, **options: gate.wait(10))
        for _ in range(THREADS):
            pool.submit("text", {"text": Tensor.from_strings(["long"])}, {}, lambda outcome: None)
        texts = Texts(text=Tensor.from_strings(["a"]))
        kept = weakref.ref(texts)
        future = pool.submit("text", texts, {}, lambda outcome: None)
        del texts
        assert kept() is not None
        assert future.cancel()
        assert kept() is None
        gate.set()
        pool.close()

    def test_tokenizers_of_models_that_are_gone_are_forgotten(self, pool: TextPool) -> None:
        assert TEXT.text is not None
        pool.add("other", TEXT.text, byte_tokenizer())
        pool.keep({"text"})
        pool.submit("text", {"text": Tensor.from_strings(["a"])}, {}, lambda outcome: None)
        with pytest.raises(KeyError):
            pool.submit("other", {"text": Tensor.from_strings(["a"])}, {}, lambda outcome: None)
        pool.close()

    def test_only_a_tokenizer_that_has_changed_is_read_anew(
        self, pool: TextPool, woken: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert TEXT.text is not None
        made: list[int] = []

        class Counted(TextTokenizer):
            def __init__(self, data: bytes, info: TextInfo) -> None:
                made.append(info.max_length)
                super().__init__(data, info)

        monkeypatch.setattr("gpu_server.daemon.text.TextTokenizer", Counted)
        pool.add("text", replace(TEXT.text), byte_tokenizer())
        assert made == []
        pool.add("text", TEXT.text, byte_tokenizer() + b" ")
        pool.add("text", replace(TEXT.text, max_length=3), byte_tokenizer() + b" ")
        assert made == [16, 3]
        outcome = self.run(pool, woken, ["abcdef"])
        assert isinstance(outcome, dict)
        assert outcome["input_ids"].lengths() == [3]
        pool.close()

    def test_models_that_share_a_file_keep_their_own_limits(
        self, pool: TextPool, woken: threading.Event
    ) -> None:
        assert TEXT.text is not None
        shorter = type(TEXT.text)(digest=TEXT.text.digest, max_length=3, vocab_size=258)
        pool.add("short", shorter, byte_tokenizer())
        outcome = self.run(pool, woken, ["abcdef"])
        assert isinstance(outcome, dict)
        assert outcome["input_ids"].lengths() == [8]
        pool.close()
