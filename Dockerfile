# DALL·E mini in a container, for a CPU, or for an NVIDIA GPU by a build argument. Build it in the root of a clone:
#
#   docker build --tag dalle-mini .
#   docker build --tag dalle-mini:gpu --build-arg EXTRAS=gpu,train,batch .
#   docker build --tag dalle-mini:serve --build-arg EXTRAS=serve .
#
# The command works in /work and keeps downloads and compiled programs in /cache. Mount a folder of yours in place of each.
# Here images come to ./pictures, and the model is read from ./mini:
#
#   mkdir -p ~/.cache
#   alias dalle='docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" --volume "$HOME/.cache:/cache"'
#   dalle dalle-mini generate "a red apple"
#   dalle dalle-mini generate "an avocado armchair" --model mini
#   dalle --gpus all dalle-mini:gpu train finetune-emoji --output runs/mine data.train=my-pictures
#   docker run --rm --publish 127.0.0.1:8000:8000 dalle-mini:serve serve --host 0.0.0.0 --folder /cache/serve
#
# A GPU needs NVIDIA's driver and its container toolkit on the host; JAX brings CUDA. EXTRAS are those of docs/install.md.
FROM python:3.12-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
ARG EXTRAS=train,batch
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[$EXTRAS]"
# What the container toolkit passes on of the driver.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The user's own folders are mounted here; without them, these belong to the user that the container runs as.
ENV XDG_CACHE_HOME=/cache
RUN useradd --uid 1000 --create-home artist && mkdir /work /cache && chown artist /work /cache
USER 1000
WORKDIR /work
ENTRYPOINT ["dalle-mini"]
CMD ["--help"]
