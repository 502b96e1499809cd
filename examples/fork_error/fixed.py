"""Sentence embeddings over HTTP."""

from flask import Flask, jsonify, request

from gpu_server import Client

app = Flask(__name__)
model = Client()


@app.post("/embed")
def embed():
    vectors = model.embed(request.json["texts"])
    return jsonify(embeddings=vectors.tolist())
