# The image of worker, Flower and command line. Build: docker build -t proj .

# --- What the project needs to run, the driver of PostgreSQL included. It changes only with the pins.
FROM python:3.13-slim-trixie AS dependencies
WORKDIR /build
COPY requirements.txt pyproject.toml ./
RUN python -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['postgresql'], sep='\n')" > runtime.txt
# The pins are taken as constraints: of them, only what the runtime needs is fetched, and each is checked
# against its hash.
RUN pip wheel --disable-pip-version-check --no-cache-dir --only-binary :all: --require-hashes \
        --constraint requirements.txt --requirement runtime.txt --wheel-dir /wheels
RUN python -m venv --without-pip /opt/proj \
    && pip --python /opt/proj install --disable-pip-version-check --no-deps --no-index /wheels/*.whl

# --- The project's own wheel, built by what is pinned.
FROM python:3.13-slim-trixie AS package
WORKDIR /build
COPY requirements.txt ./
RUN echo hatchling > builder.txt \
    && pip install --disable-pip-version-check --no-cache-dir --root-user-action ignore --require-hashes \
        --constraint requirements.txt --requirement builder.txt
COPY LICENSE README.md pyproject.toml ./
COPY proj proj
RUN pip wheel --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir /dist .

# --- What runs: no root, and nothing that only building needs.
FROM python:3.13-slim-trixie
RUN groupadd --system --gid 10001 proj \
    && useradd --system --gid proj --uid 10001 --no-create-home --home-dir /var/lib/proj proj \
    && install --directory --owner proj --group proj --mode 700 /var/lib/proj
COPY --from=dependencies /opt/proj /opt/proj
RUN --mount=from=package,source=/dist,target=/dist \
    pip --python /opt/proj install --disable-pip-version-check --no-cache-dir --no-deps --no-index /dist/*.whl
ENV PATH=/opt/proj/bin:$PATH PROJ_STATE_DIR=/var/lib/proj
USER proj
WORKDIR /var/lib/proj
# For what restarts the unhealthy: a broker that is down must not have the workers restarted. docker-compose.yml,
# which restarts nobody, asks whether they are ready.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["proj", "health", "--live"]
CMD ["celery", "-A", "proj", "worker", "--loglevel=INFO"]
