"""Messages that a receiver must refuse, with the code and the id of the refusal."""

from golden import bad_headers, bad_replies, bad_tensors
from golden.build import Vector


def cases() -> list[Vector]:
    return [*bad_headers.cases(), *bad_tensors.cases(), *bad_replies.cases()]
