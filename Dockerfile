# syntax=docker/dockerfile:1
# One image for the API, the worker, beat, Flower and the migrations; compose.yaml gives each its command.

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# What changes seldom comes first, so that a changed line of code installs nothing again.
COPY requirements/run.txt requirements/build.txt requirements/
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --require-hashes --requirement requirements/run.txt
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes --requirement requirements/build.txt

COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/venv/bin/pip install --no-deps --no-index /dist/*.whl

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home bookstore \
    && install --directory --owner=bookstore /data /data/beat /data/uploads
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 \
    DATABASE_URL=sqlite:////data/app.db UPLOAD_DIR=/data/uploads
WORKDIR /app
COPY alembic.ini ./
COPY app app
USER bookstore
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["uvicorn", "app.main:app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "5"]
