"""A compressed body is one stream and nothing after it."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from flask.testing import FlaskClient

BODY = json.dumps({"inputs": "a"}).encode()
PACKED = {"gzip": gzip.compress(BODY), "deflate": zlib.compress(BODY)}
MEMBER = gzip.compress(b" ")


@pytest.mark.parametrize("coding", PACKED)
@pytest.mark.parametrize("after", [b"", b"\0", b"x", MEMBER], ids=["none", "zero", "x", "member"])
def test_bytes_after_a_compressed_body_are_refused(http: FlaskClient, coding: str, after: bytes) -> None:
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    answer = http.post("/embed", data=PACKED[coding] + after, headers=headers)
    assert answer.status_code == (400 if after else 200)
    assert not after or f"the {coding} body goes on after its end" in answer.get_json()["error"]
