# docker build -f deploy/docker/cpu.Dockerfile -t tailrace:cpu .
FROM python:3.11-slim-bookworm
# DeepSpeed compiles a helper with g++ and ninja; vLLM loads libnuma; KubeRay's probes use wget, the cluster launcher rsync.
RUN apt-get update && apt-get install -y --no-install-recommends \
        g++ git libnuma1 ninja-build openssh-client rsync wget && rm -rf /var/lib/apt/lists/*
COPY . /opt/tailrace
WORKDIR /opt/tailrace
RUN EXTRA=cpu VENV=/opt/venv sh deploy/setup.sh && useradd --create-home --uid 1000 ray
ENV PATH=/opt/venv/bin:$PATH RAY_AUTH_MODE=token
USER ray
WORKDIR /home/ray
