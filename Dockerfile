# A server of models: docs/serving.md. TORCH_INDEX chooses the build of torch, for CUDA https://download.pytorch.org/whl/cu126.
FROM python:3.12-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple torch
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY recipes recipes
COPY hdlm hdlm
RUN pip install --constraint constraints.txt ".[serve,hub]"

FROM python:3.12-slim
COPY --from=build /venv /venv
RUN useradd --create-home --uid 10001 hdlm
USER hdlm
WORKDIR /home/hdlm
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
# A server in a container listens on all of its addresses, so it needs HDLM_API_KEY or the argument --no-auth.
ENTRYPOINT ["hdlm", "serve", "--host", "0.0.0.0"]
