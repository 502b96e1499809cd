"""Token classification (named entities and the like), as Hugging Face's clients ask for it."""

from __future__ import annotations

from typing import Any

from web.backend import Backend
from web.call import Call
from web.encoding import Answer, json_answer
from web.entities import group, labelled
from web.inputs import as_texts
from web.routing import Routes
from web.schemas import TokenClassificationRequest, TokenParameters
from web.scoring import ScoreJob, label_tokens

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
    answer: list[list[dict[str, Any]]] = []
    for text, (encoding, scores) in zip(texts, found, strict=True):
        tokens = labelled(text, encoding, scores, info.labels)
        if options.aggregation_strategy == "none":
            answer.append([t for t in tokens if t["entity"] not in ignored])
        else:
            answer.append(group(text, tokens, ignored))
    return json_answer(answer[0] if isinstance(body.inputs, str) else answer, headers=measures.headers(info))
