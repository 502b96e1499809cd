from flask import Flask, jsonify, request

from gpu_server import Client

app = Flask(__name__)
client = Client()


@app.post("/classify")
def classify():
    answer = client.infer("Classifier", pixels=request.json["pixels"])
    return jsonify(label=answer["label"].tolist(), score=answer["score"].tolist())
