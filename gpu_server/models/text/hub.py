"""What the Hugging Face hub's refusal of a model means: in words, and whether a later start may fare better. No torch."""

from __future__ import annotations

_UNAUTHORIZED = 401
_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500


def refusal(error: Exception) -> str:
    """Why `snapshot_download` gave nothing, as the end of a sentence in one line."""
    from huggingface_hub import errors

    cause = _cause(error)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return "the hub is not asked, as HF_HUB_OFFLINE is set"
    if isinstance(cause, errors.GatedRepoError):
        return "the hub gives it only to those it has let in: set HF_TOKEN"
    if isinstance(cause, errors.RevisionNotFoundError):
        return "the hub has no such revision of it"
    if isinstance(cause, errors.HfHubHTTPError):
        status = cause.response.status_code
        if isinstance(cause, errors.RepositoryNotFoundError) or status == _UNAUTHORIZED:
            return "the hub has no such model, or only for those who may see it: set HF_TOKEN"
        return f"the hub answered with HTTP {status}"
    if may_recover(error):
        return "the hub could not be reached"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"the hub did not give it ({reason})"


def may_recover(error: Exception) -> bool:
    """Whether the network or the hub was at fault, not the name: a machine may start before its network does."""
    from huggingface_hub import errors

    cause = _cause(error)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return False
    if isinstance(cause, errors.HfHubHTTPError):
        status = cause.response.status_code
        return status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR
    unreached = (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)  # type: ignore[attr-defined]
    return isinstance(error, unreached)


def _cause(error: Exception) -> BaseException:
    """What the hub answered, where `snapshot_download` says only that the cache could not help either."""
    from huggingface_hub import errors

    return (error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None) or error
