# Two images with the same versions: `chunkmap` (scheduler, workers, drivers, the Prefect server)
# and `s3` (SeaweedFS). `make cluster-up` builds both. To install from another package index, pass a
# pip.conf and a CA file as build secrets (`--secret id=pip`, `--secret id=ca`).
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_CONFIG_FILE=/run/secrets/pip
WORKDIR /src
# pip and the build backend stay in this stage: the images' environments have neither.
COPY deploy/locks/build.txt deploy/locks/
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    --mount=type=cache,target=/root/.cache/pip \
    [ ! -e /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca; \
    python3 -m venv /opt/build && \
    /opt/build/bin/pip install --quiet --no-deps --require-hashes --only-binary :all: \
      -r deploy/locks/build.txt

FROM build AS environment
COPY deploy/locks/image.txt deploy/locks/
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    --mount=type=cache,target=/root/.cache/pip \
    [ ! -e /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca; \
    python3 -m venv --without-pip /opt/chunkmap && \
    /opt/build/bin/pip --python /opt/chunkmap/bin/python install --quiet --no-deps \
      --require-hashes --only-binary :all: -r deploy/locks/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY chunkmap_main.py chunkmap_main.py
COPY chunkmap chunkmap
COPY partitioning partitioning
COPY pipeline pipeline
# The demo job, to which a link in the package points.
COPY conf/jobs conf/jobs
RUN /opt/build/bin/pip wheel --quiet --no-deps --no-index --no-build-isolation \
      --wheel-dir /opt/wheels . && \
    /opt/build/bin/pip --python /opt/chunkmap/bin/python install --quiet --no-deps --no-index \
      /opt/wheels/*.whl && \
    /opt/build/bin/pip --python /opt/chunkmap/bin/python check

FROM build AS weed
COPY deploy/locks/s3.txt deploy/locks/
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    --mount=type=cache,target=/root/.cache/pip \
    [ ! -e /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca; \
    python3 -m venv --without-pip /opt/weed && \
    /opt/build/bin/pip --python /opt/weed/bin/python install --quiet --no-deps \
      --require-hashes --only-binary :all: -r deploy/locks/s3.txt

FROM ${PYTHON_IMAGE} AS base
# A separate user, whose number no base image uses.
RUN groupadd --gid 10001 chunkmap && \
    useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin \
      chunkmap
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
COPY deploy/healthy.sh deploy/entrypoint.sh /usr/local/lib/chunkmap/

FROM base AS s3
# A volume gets the owner of the folder on which it is mounted.
RUN mkdir /data && chown 10001:10001 /data
COPY --from=weed /opt/weed/bin/weed /usr/local/bin/weed
USER 10001:10001
EXPOSE 8333
ENTRYPOINT ["weed"]
CMD ["version"]

FROM base AS chunkmap
COPY --from=environment /opt/chunkmap /opt/chunkmap
WORKDIR /app
COPY deploy deploy
COPY conf conf
# Where transforms may come from (transforms.allow in conf/base.yaml).
COPY examples examples
COPY prefect.yaml prefect.yaml
ENV PATH=/opt/chunkmap/bin:$PATH CHUNKMAP_ENVIRONMENT=compose CHUNKMAP_CONF=/app/conf \
    CHUNKMAP_STATE_DIR=/tmp/chunkmap PREFECT_HOME=/tmp/prefect
RUN chmod -R a=rX /app
USER 10001:10001
EXPOSE 8786 8787 8788 4200
ENTRYPOINT ["/bin/sh", "/usr/local/lib/chunkmap/entrypoint.sh"]
CMD ["chunkmap", "--help"]
