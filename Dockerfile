# The command line and the demo for a machine with an NVIDIA GPU (or without one):
#   docker build -t align .
#   docker run --rm --gpus all -p 127.0.0.1:7860:7860 -v align-runs:/data/runs align
# The driver comes from the host (NVIDIA Container Toolkit), CUDA's libraries with PyTorch's wheel.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /source
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE LICENSE-WEIGHTS ./
COPY align align
COPY demo demo
RUN pip install --no-cache-dir --constraint constraints.txt '.[demo]' && rm -rf /source

RUN useradd --create-home align && mkdir -p /data/runs && chown -R align /data
USER align
WORKDIR /data
VOLUME /data/runs
EXPOSE 7860
ENTRYPOINT ["align"]
CMD ["demo", "--host", "0.0.0.0", "--port", "7860"]
