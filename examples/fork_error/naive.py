"""Sentence embeddings over HTTP."""

from flask import Flask, jsonify, request
from minilm import MiniLM

app = Flask(__name__)
model = MiniLM(device="cuda")


@app.post("/embed")
def embed():
    vectors = model.embed(request.json["texts"])
    return jsonify(embeddings=vectors.tolist())
