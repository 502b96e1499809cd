"""One HTTP/1.1 answer as its bytes come in: its status, where it ends, and whether the connection stays open."""

from __future__ import annotations

LONGEST_HEAD = 65_536


class BadAnswer(Exception):
    """What came is not HTTP/1.x."""


class Answer:
    """Feed it bytes until `feed` is true. The body is counted and dropped."""

    def __init__(self) -> None:
        self.status = 0
        self.keep_alive = True
        self._head = b""
        self._in_body = False
        # Bytes still to come: of the body, or of the chunk; None for a body that ends with the connection.
        self._left: int | None = 0
        self._chunked = False
        self._last_chunk = False
        self._rest = b""

    def feed(self, data: bytes) -> bool:
        """Take bytes; whether the answer is complete. Raises BadAnswer."""
        if not self._in_body:
            head, found, data = (self._head + data).partition(b"\r\n\r\n")
            if not found:
                self._head = head
                if len(head) > LONGEST_HEAD:
                    raise BadAnswer("endless headers")
                return False
            self._read_head(head)
            if not self._in_body:
                return self.feed(data)
        if self._chunked:
            return self._feed_chunks(data)
        if self._left is None:
            return False
        self._left -= len(data)
        if self._left < 0:
            raise BadAnswer("more bytes than the answer has")
        return self._left == 0

    def end(self) -> bool:
        """The connection has ended; whether that completes the answer."""
        return self._in_body and self._left is None

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise BadAnswer(f"not HTTP: {first[:40]!r}")
        self.status = int(rest[:3])
        self._head = b""
        if self.status < 200:
            return
        fields = {
            name.strip().lower(): value.strip().lower()
            for name, _, value in (line.partition(b":") for line in lines)
        }
        self._in_body = True
        self.keep_alive = (
            fields.get(b"connection", b"keep-alive" if version == b"HTTP/1.1" else b"close") != b"close"
        )
        self._chunked = fields.get(b"transfer-encoding", b"").endswith(b"chunked")
        length = fields.get(b"content-length", b"")
        if self.status in (204, 304):
            self._chunked, self._left = False, 0
        elif not self._chunked:
            self._left = int(length) if length.isdigit() else None
            self.keep_alive &= self._left is not None

    def _feed_chunks(self, data: bytes) -> bool:
        rest = self._rest + data
        while rest:
            if self._left:
                taken = min(self._left, len(rest))
                self._left -= taken
                rest = rest[taken:]
                continue
            line, found, after = rest.partition(b"\r\n")
            if not found:
                break
            rest = after
            if self._last_chunk:
                if not line:
                    return True
                continue
            self._begin_chunk(line)
        self._rest = rest
        return False

    def _begin_chunk(self, line: bytes) -> None:
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise BadAnswer(f"not the size of a chunk: {line[:40]!r}") from None
        self._last_chunk = size == 0
        # A chunk's data ends in a line break of its own.
        self._left = size + 2 if size else 0
