# docker build -f deploy/docker/gpu.Dockerfile -t tailrace:gpu .
# The devel image: DeepSpeed and FlashInfer compile kernels with nvcc.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends \
        g++ git libnuma1 ninja-build openssh-client python3 python3-dev python3-venv rsync wget && rm -rf /var/lib/apt/lists/*
COPY . /opt/tailrace
WORKDIR /opt/tailrace
# Ubuntu's image has a user of id 1000 already.
RUN EXTRA=gpu VENV=/opt/venv sh deploy/setup.sh && userdel --remove ubuntu && useradd --create-home --uid 1000 ray
ENV PATH=/opt/venv/bin:$PATH RAY_AUTH_MODE=token
USER ray
WORKDIR /home/ray
