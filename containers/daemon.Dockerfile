# The daemon and its engine. Build from the repository's root:
#   docker build -f containers/daemon.Dockerfile -t gpu-server-daemon:0.1.0 .
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY scripts/systemd scripts/systemd
COPY gpu_server gpu_server
COPY web web
RUN python -m venv /opt/gpu-server \
 && /opt/gpu-server/bin/pip install --no-cache-dir -c constraints.txt '.[server]'

FROM python:${PYTHON}
# Triton compiles its launchers with the system's C compiler. Security fixes come with the image's rebuild.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 gpu-clients \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/gpu-server --create-home gpu-server \
 && install -d -o 10001 -g 10001 -m 0750 /run/gpu-server /var/cache/gpu-server
COPY --from=build /opt/gpu-server /opt/gpu-server
ENV PATH=/opt/gpu-server/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    GPU_SERVER_ENDPOINT=ipc:///run/gpu-server/main/gpu-server.sock \
    HF_HOME=/var/lib/gpu-server/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/gpu-server/inductor \
    TRITON_CACHE_DIR=/var/cache/gpu-server/triton \
    CUDA_CACHE_PATH=/var/cache/gpu-server/cuda \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /var/lib/gpu-server
USER 10001:10001
# Exits with 0 when the daemon is ready.
HEALTHCHECK --interval=30s --timeout=15s --start-period=15m --retries=3 CMD ["gpu-server", "status"]
ENTRYPOINT ["gpu-server"]
CMD ["start"]
