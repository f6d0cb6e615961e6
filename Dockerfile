# SPDX-License-Identifier: Apache-2.0
# d2defense with everything that requirements/lock.txt pins, run by a user without rights.
#
#   docker build -t d2defense .
#   docker build -t d2defense:cuda --build-arg DEVICE=cuda .
#
#   DEVICE                cpu, or cuda: compiles the CUDA kernels along
#   TORCH_CUDA_ARCH_LIST  the GPU architectures to compile them for
ARG DEVICE=cpu
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build-cpu
# Debian keeps only the newest revision of a package, so that a pinned one would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# The compiler alone comes from here; the libraries that are used come with torch.
FROM nvidia/cuda:13.0.1-devel-ubuntu22.04 AS toolkit

FROM build-cpu AS build-cuda
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0"
COPY --from=toolkit /usr/local/cuda-13.0/ /usr/local/cuda/
ENV FORCE_CUDA=1 CUDA_HOME=/usr/local/cuda PATH=/usr/local/cuda/bin:${PATH} \
    TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST}

# hadolint ignore=DL3006
FROM build-${DEVICE} AS build
WORKDIR /opt/d2defense
ENV PIP_NO_CACHE_DIR=1
# What the packages depend on comes first: a change elsewhere does not install them anew.
COPY setup.py pyproject.toml README.md LICENSE ./
COPY requirements/ requirements/
COPY tools/install/ tools/install/
COPY d2defense/__init__.py d2defense/__init__.py
RUN D2DEFENSE_NO_EXTENSION=1 sh tools/install/install.sh
COPY . .
RUN sh tools/install/install.sh && rm -rf build

FROM ${PYTHON_IMAGE}
# The compiled operator needs the OpenMP runtime.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 --user-group d2defense
COPY --from=build /opt/d2defense/ /opt/d2defense/
ENV PATH=/opt/d2defense/.venv/bin:${PATH} PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /home/d2defense
ENTRYPOINT ["d2defense"]
