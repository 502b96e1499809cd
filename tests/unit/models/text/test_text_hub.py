"""What is said of a hub that gives nothing, and which of its refusals may pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from gpu_server.models.text import hub


def answered(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} Client Error\nfor url", response=response)


def not_here(cause: Exception) -> errors.LocalEntryNotFoundError:
    """As `snapshot_download` hands on what happened when the cache cannot help either."""
    error = errors.LocalEntryNotFoundError(
        f"Got: {type(cause).__name__}: {cause}\nPlease check your internet connection"
    )
    error.__cause__ = cause
    return error


UNREACHED = "the hub could not be reached"
UNKNOWN = "the hub has no such model, or only for those who may see it: set HF_TOKEN"


@pytest.mark.parametrize(
    ("error", "said", "may_recover"),
    [
        (not_here(errors.HTTPError("[Errno -2] Name or service not known")), UNREACHED, True),  # type: ignore[attr-defined]
        (errors.HTTPError("proxy"), UNREACHED, True),  # type: ignore[attr-defined]
        (TimeoutError("read"), UNREACHED, True),
        (not_here(answered(errors.HfHubHTTPError, 503)), "the hub answered with HTTP 503", True),
        (answered(errors.HfHubHTTPError, 429), "the hub answered with HTTP 429", True),
        (not_here(answered(errors.HfHubHTTPError, 403)), "the hub answered with HTTP 403", False),
        (answered(errors.RepositoryNotFoundError, 401), UNKNOWN, False),
        (answered(errors.RepositoryNotFoundError, 404), UNKNOWN, False),
        (
            answered(errors.GatedRepoError, 403),
            "the hub gives it only to those it has let in: set HF_TOKEN",
            False,
        ),
        (answered(errors.RevisionNotFoundError, 404), "the hub has no such revision of it", False),
        (
            not_here(errors.OfflineModeIsEnabled("offline")),
            "the hub is not asked, as HF_HUB_OFFLINE is set",
            False,
        ),
        (
            PermissionError(13, "Permission denied"),
            "the hub did not give it ([Errno 13] Permission denied)",
            False,
        ),
        (ValueError("first\nsecond"), "the hub did not give it (first)", False),
        (OSError(), "the hub did not give it (OSError)", False),
    ],
)
def test_a_refusal_is_said_in_plain_words(error: Exception, said: str, may_recover: bool) -> None:
    assert (hub.refusal(error), hub.may_recover(error)) == (said, may_recover)
