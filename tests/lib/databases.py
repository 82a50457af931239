"""A PostgreSQL server, and a database of the test's own in it."""

from collections.abc import Iterator

import pytest

from tests.lib.bundle import Bundle
from tests.lib.missing import missing
from tests.lib.postgres import INSTALL_HINT, PASSWORD, Postgres, find_server_dir
from tests.lib.stores import Database


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for all tests of this process: a skip on a laptop without PostgreSQL, a failure in CI."""
    server_dir = find_server_dir()
    if server_dir is None:
        missing(INSTALL_HINT)
    with Postgres(server_dir) as server:
        server.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        yield server


@pytest.fixture
def database(postgres: Postgres, bundle: Bundle) -> Database:
    return Database(postgres, bundle)


@pytest.fixture(params=["sqlite", "postgresql"])
def stored(request: pytest.FixtureRequest, bundle: Bundle) -> Bundle:
    """A bundle with either store."""
    if request.param != "sqlite":
        request.getfixturevalue("database")
    return bundle
