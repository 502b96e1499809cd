"""The stock frontend with a route of its own: `gunicorn -c python:web.serving app:app`."""

from flask import jsonify, request

from gpu_server.errors import InvalidRequest
from web import create_app, get_client

app = create_app()


@app.post("/compare")
def compare():
    """Cosine similarity of the first text to each of the others."""
    body = request.get_json(silent=True)
    texts = body.get("texts") if isinstance(body, dict) else None
    if not isinstance(texts, list) or len(texts) < 2:
        raise InvalidRequest("texts must be a list of at least two strings", {"field": "texts"})
    vectors = get_client().embed(texts, normalize=True)
    return jsonify(similarity=(vectors[1:] @ vectors[0]).tolist())
