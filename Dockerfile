# syntax=docker/dockerfile:1
# An image with Ray and the package, for cluster/kuberay.yaml, or in place of the images and the installation of
# cluster/gpu.yaml and cluster/gpu-gcp.yaml. From the root of the repository:
#   docker build -t REGISTRY/gradinversion:1 .
# For nodes without a GPU: --build-arg BASE=rayproject/ray:2.60.0-py311

# The Ray of the image must be the one that runs `ray up`, or that KubeRay is told (rayVersion).
ARG BASE=rayproject/ray:2.60.0-py311-gpu
FROM ${BASE}

# The image has no git to read the version from.
ARG VERSION=0.1.0.dev0
ENV PYTHONUNBUFFERED=1

COPY --chown=ray:users . /home/ray/source
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_GRADINVERSION="${VERSION}" \
    python -m pip install --no-cache-dir "/home/ray/source[s3,gcs]" \
    && cp /home/ray/source/run.py /home/ray/run.py \
    && rm -rf /home/ray/source \
    && gradinversion --version

# The image's user `ray`, by number: Kubernetes can then see that it is not root.
USER 1000:100
WORKDIR /home/ray
CMD ["gradinversion", "--help"]
