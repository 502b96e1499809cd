"""Token classification (named entities and the like), as Hugging Face's clients ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_server.scores import Scores
from web.backend import Backend
from web.call import Call
from web.encoding import Answer, json_answer, json_rows
from web.entities import group, labelled
from web.inputs import as_texts
from web.routing import Routes
from web.schemas import TokenClassificationRequest, TokenParameters
from web.scoring import ScoreJob, label_tokens

if TYPE_CHECKING:
    from tokenizers import Encoding

routes = Routes("tei")


@routes.post(
    "/token_classification", "/models/<path:model>/token_classification", body=TokenClassificationRequest
)
def classify_tokens(call: Call, body: TokenClassificationRequest, model: str = "") -> Answer:
    """Entities of each text with character offsets: a list for one text, else a list of lists."""
    texts = as_texts(body.inputs, "inputs")
    options = body.parameters or TokenParameters()
    ignored = frozenset(options.ignore_labels if options.ignore_labels is not None else ["O"])
    job = ScoreJob(texts, "inputs", (), model or body.model or "", truncate=body.truncate is not False)
    found, info, measures = label_tokens(Backend(call), job)

    def entities(text: str, encoding: Encoding, scores: Scores) -> list[dict[str, Any]]:
        tokens = labelled(text, encoding, scores, info.labels)
        if options.aggregation_strategy == "none":
            return [t for t in tokens if t["entity"] not in ignored]
        return group(text, tokens, ignored)

    answer = (entities(text, *labels) for text, labels in zip(texts, found, strict=True))
    single, headers = isinstance(body.inputs, str), measures.headers(info)
    return json_answer(next(answer), headers=headers) if single else json_rows(answer, headers)
