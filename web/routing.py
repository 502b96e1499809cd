"""Routes as data: path, handler, type of the body and shape of errors; Flask and the fast layer read the same table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from web.body import read
from web.call import Call
from web.encoding import Answer
from web.errors import Dialect

Handler = Callable[..., Answer]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True)
class Route:
    """One method of one path.

    name: what metrics call it: the first path of its handler.
    body: the struct that the JSON body is decoded to; None if the handler reads the body itself, as one of `reads`, or there
    is none.
    texts: the field of the body whose lists are texts, which bounds their number.
    hot: answered in front of Flask's dispatch. open: answered without an API key. work: counted as a request in flight.
    """

    method: str
    path: str
    handler: Handler
    dialect: Dialect
    name: str
    body: type[msgspec.Struct] | None = None
    reads: tuple[type[msgspec.Struct], ...] = ()
    texts: str = ""
    hot: bool = False
    open: bool = False
    work: bool = False

    @property
    def summary(self) -> str:
        """The first line of the handler's docstring."""
        return (self.handler.__doc__ or "").partition("\n")[0]


@dataclass
class Routes:
    """The routes of one API family, all with errors in its dialect unless they say otherwise."""

    dialect: Dialect
    table: list[Route] = field(default_factory=list)

    def get(self, *paths: str, **about: Any) -> Callable[[H], H]:
        """Serve GET of `paths`; `about` as in Route."""
        return self._add("GET", paths, about)

    def post(self, *paths: str, **about: Any) -> Callable[[H], H]:
        """Serve POST of `paths`; the handler gets the decoded body after the call where `body` names its type."""
        return self._add("POST", paths, {"work": True} | about)

    def _add(self, method: str, paths: tuple[str, ...], about: dict[str, Any]) -> Callable[[H], H]:
        def register(handler: H) -> H:
            given = {"dialect": self.dialect, "name": paths[0]} | about
            self.table += [Route(method, path, handler, **given) for path in paths]
            return handler

        return register


def run(route: Route, call: Call, values: dict[str, Any]) -> Answer:
    """The answer of a route's handler; `values` are the variables of its path. Raises Overloaded at the limit."""
    if not route.work or call.shared.gate is None:
        return _answer(route, call, values)
    with call.shared.gate.pass_one():
        return _answer(route, call, values)


def _answer(route: Route, call: Call, values: dict[str, Any]) -> Answer:
    if route.body is None:
        return route.handler(call, **values)
    return route.handler(call, read(call, route.body, route.texts), **values)
