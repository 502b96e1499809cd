# The web frontend, without torch. Build from the repository's root:
#   docker build -f containers/web.Dockerfile -t gpu-server-web:0.1.0 .
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY scripts/systemd scripts/systemd
COPY gpu_server gpu_server
COPY web web
RUN python -m venv /opt/gpu-server \
 && /opt/gpu-server/bin/pip install --no-cache-dir -c constraints.txt '.[web]' \
 && ! /opt/gpu-server/bin/python -c 'import torch'

FROM python:${PYTHON}
# The daemon's group may open its socket.
RUN groupadd --gid 10001 gpu-clients \
 && useradd --uid 10002 --gid 10001 --no-create-home gpu-web
COPY --from=build /opt/gpu-server /opt/gpu-server
ENV PATH=/opt/gpu-server/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    GPU_SERVER_ENDPOINT=ipc:///run/gpu-server/main/gpu-server.sock \
    GPU_SERVER_WEB_BIND=0.0.0.0:8000
WORKDIR /
USER 10002:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["gunicorn", "--worker-tmp-dir", "/dev/shm", "-c", "python:web.serving", "web:app"]
