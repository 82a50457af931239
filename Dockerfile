# The image of the worker, Flower and the command line. Build it: docker build -t proj .

# --- The runtime dependencies, with PostgreSQL's driver. This stage changes only when the pins change.
FROM python:3.13-slim-trixie AS dependencies
WORKDIR /build
COPY requirements.txt pyproject.toml ./
RUN python -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['postgresql'], sep='\n')" > runtime.txt
# The pins are constraints: pip fetches only what the runtime needs, and checks the hash of each package.
RUN pip wheel --disable-pip-version-check --no-cache-dir --only-binary :all: --require-hashes \
        --constraint requirements.txt --requirement runtime.txt --wheel-dir /wheels
RUN python -m venv --without-pip /opt/proj \
    && pip --python /opt/proj install --disable-pip-version-check --no-deps --no-index /wheels/*.whl

# --- The project's own wheel, built with pinned tools.
FROM python:3.13-slim-trixie AS package
WORKDIR /build
COPY requirements.txt ./
RUN echo hatchling > builder.txt \
    && pip install --disable-pip-version-check --no-cache-dir --root-user-action ignore --require-hashes \
        --constraint requirements.txt --requirement builder.txt
COPY LICENSE README.md pyproject.toml ./
COPY proj proj
RUN pip wheel --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir /dist .

# --- What runs, without build tools.
FROM python:3.13-slim-trixie AS runtime
RUN groupadd --system --gid 10001 proj \
    && useradd --system --gid proj --uid 10001 --no-create-home --home-dir /var/lib/proj proj \
    && install --directory --owner proj --group proj --mode 700 /var/lib/proj
COPY --from=dependencies /opt/proj /opt/proj
RUN --mount=from=package,source=/dist,target=/dist \
    pip --python /opt/proj install --disable-pip-version-check --no-cache-dir --no-deps --no-index /dist/*.whl
ENV PATH=/opt/proj/bin:$PATH PROJ_STATE_DIR=/var/lib/proj
WORKDIR /var/lib/proj

# --- The example examples/photos, its worker and its page: docker build --target photos -t proj-photos .
FROM runtime AS photos
COPY examples/photos/requirements.txt /srv/photos/
RUN pip --python /opt/proj install --disable-pip-version-check --no-cache-dir --only-binary :all: --require-hashes \
        --requirement /srv/photos/requirements.txt \
    && install --directory --owner proj --group proj --mode 700 /var/lib/photos
COPY examples/photos/photos /srv/photos/photos
ENV PYTHONPATH=/srv/photos PROJ_TASKS=photos.tasks PROJ_QUEUES=photos PHOTOS_DIR=/var/lib/photos
USER proj
CMD ["python", "-m", "photos", "--host=0.0.0.0"]

# --- The image of workers, Flower and the command line: not as root.
FROM runtime
USER proj
# `--live`, for orchestrators that restart unhealthy containers: a broker that is down is no reason to restart a worker.
# docker-compose.yml restarts none, so it checks `--ready`.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["proj", "health", "--live"]
CMD ["celery", "-A", "proj", "worker", "--loglevel=INFO"]
