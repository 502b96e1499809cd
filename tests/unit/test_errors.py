"""The exception tree: what an error reply becomes, and what the command line exits with."""

import re

import pytest

from gpu_server import errors
from gpu_server.errors import GPUServerError, InternalError, Overloaded, ProtocolError, RemoteError, from_wire


def tree(root: type[Exception]) -> list[type[Exception]]:
    return [
        root,
        *(c for child in root.__subclasses__() for c in tree(child) if c.__module__ == errors.__name__),
    ]


@pytest.mark.parametrize("kind", RemoteError.__subclasses__(), ids=lambda c: c.__name__)
def test_error_reply_becomes_the_class_of_its_code(kind: type[RemoteError]) -> None:
    error = from_wire(kind.code, "why", {"limit": "max_items"})
    assert type(error) is kind
    assert (str(error), error.message, error.details) == ("why", "why", {"limit": "max_items"})


@pytest.mark.parametrize("code", ["", "quota_exceeded"])
def test_unknown_code_becomes_an_internal_error(code: str) -> None:
    assert type(from_wire(code, "why")) is InternalError


def test_details_belong_to_one_error_only() -> None:
    given = {"a": 1}
    error = RemoteError("x", given)
    error.details["b"] = 2
    assert given == {"a": 1}
    assert RemoteError("x").details == {}


@pytest.mark.parametrize(("details", "seconds"), [({"retry_after_ms": 250}, 0.25), ({}, 1.0)])
def test_overloaded_says_when_to_try_again(details: dict[str, int], seconds: float) -> None:
    assert Overloaded("full", details).retry_after_s == seconds


def test_protocol_error_carries_what_the_refusal_needs() -> None:
    error = ProtocolError("bad", b"\x01", "too_large")
    assert (str(error), error.request_id, error.code) == ("bad", b"\x01", "too_large")
    plain = ProtocolError("bad")
    assert (plain.request_id, plain.code, plain.details) == (b"", "invalid_request", {})


def test_torch_guard_error_stops_an_import() -> None:
    assert issubclass(errors.TorchGuardError, ImportError)


def test_drawing_shows_the_whole_tree() -> None:
    entry = re.compile(r"^([A-Z]\w+)|[├└]─ (\w+)|\b([A-Z]\w+) (?=\d{3})", re.MULTILINE)
    drawing = (errors.__doc__ or "").partition("\n\n")[2]
    drawn = ["".join(groups) for groups in entry.findall(drawing)]
    assert sorted(drawn) == sorted(c.__name__ for c in tree(GPUServerError))


def test_statuses_in_the_drawing_are_those_of_the_classes() -> None:
    drawn = dict(re.findall(r"\b([A-Z]\w+) (\d{3})", errors.__doc__ or ""))
    assert drawn == {c.__name__: str(c.http_status) for c in RemoteError.__subclasses__()}


def test_exit_codes_in_the_drawing_are_those_of_the_classes() -> None:
    drawn = dict(re.findall(r"([A-Z]\w+) +.*exit (\d+)\)", errors.__doc__ or ""))
    assert drawn
    assert drawn == {name: str(getattr(errors, name).exit_code) for name in drawn}


def test_every_exit_code_that_says_something_says_it_alone() -> None:
    codes = [c.exit_code for c in tree(GPUServerError) if "exit_code" in vars(c)]
    assert len(codes) == len(set(codes))
    assert all(0 < code < 126 for code in codes)


def test_all_errors_of_the_module_are_in_the_tree() -> None:
    defined = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)}
    assert defined == set(tree(GPUServerError))
