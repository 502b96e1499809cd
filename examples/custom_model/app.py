from flask import Flask, jsonify, request

from gpu_server import Client
from gpu_server.errors import RemoteError

app = Flask(__name__)
client = Client()


@app.post("/classify")
def classify():
    answer = client.infer("Classifier", pixels=request.get_json(silent=True))
    return jsonify(label=answer["label"].tolist(), score=answer["score"].tolist())


@app.errorhandler(RemoteError)
def refused(error):
    return jsonify(error=error.message), error.http_status
