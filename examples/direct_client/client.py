"""Embed texts over the wire protocol with nothing but pyzmq and msgpack: `python client.py ipc:///path TEXT…`."""

import struct
import sys
from itertools import accumulate

import msgpack
import zmq


def embed(endpoint, texts):
    data = [text.encode() for text in texts]
    offsets = [0, *accumulate(map(len, data))]
    header = {
        "v": 1,
        "id": b"1",
        "op": "infer",
        "deadline_ms": 5000,
        "inputs": [{"name": "text", "dtype": "utf8", "shape": [len(texts)]}],
    }
    frames = [msgpack.packb(header), b"".join(data), struct.pack(f"<{len(offsets)}i", *offsets)]
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger, socket.rcvtimeo = 0, 6000
        try:
            socket.connect(endpoint)
            socket.send_multipart(frames)
            answer, *tensors = socket.recv_multipart()
        except zmq.ZMQError as error:
            raise SystemExit(
                f"no answer from {endpoint} within 6 s ({error}); see `gpu-server status`"
            ) from None
    reply = msgpack.unpackb(answer)
    if "error" in reply:
        raise SystemExit(f"{reply['error']['code']}: {reply['error']['message']}")
    _, dimensions = reply["outputs"][0]["shape"]
    return list(struct.iter_unpack(f"<{dimensions}f", tensors[0]))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    for vector in embed(sys.argv[1], sys.argv[2:]):
        print(len(vector), [round(x, 4) for x in vector[:4]])
