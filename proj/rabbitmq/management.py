"""A read-only client of RabbitMQ's management API.

Its numbers are up to 5 seconds old: the broker collects them at that interval.
"""

import base64
import http.client
import json
import ssl
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from proj import tls
from proj.config import Settings
from proj.deadline import within
from proj.errors import ManagementRefused, ManagementUnavailable

#: Seconds for one answer, including the look-up of the host. It takes milliseconds; with thousands of queues
#: it takes a second.
TIMEOUT: Final = 5.0

#: Ports of the management API, beside AMQP's 5672 and 5671.
_PORT, _TLS_PORT = 15672, 15671

_CHECK: Final = "check PROJ_MANAGEMENT_URL"

T = TypeVar("T")


@dataclass(frozen=True)
class Api:
    """The management API of one node at `url` (without path and password), used as `user`."""

    url: str
    user: str
    password: str = field(repr=False)

    @classmethod
    def beside(cls, broker: SplitResult, given: str | None) -> "Api":
        """The API at the given URL, or at the broker's host and the default port.

        The user is that of the URL, or else the broker's.
        """
        host = f"[{broker.hostname}]" if ":" in (broker.hostname or "") else broker.hostname or "localhost"
        secure = broker.scheme == "amqps"
        url = urlsplit(given or (f"https://{host}:{_TLS_PORT}" if secure else f"http://{host}:{_PORT}"))
        login = url if url.username else broker
        return cls(
            url=f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}",
            user=unquote(login.username or "guest"),
            password=unquote(login.password or "guest"),
        )


class Management:
    """The management API of a broker, at the node that answered last.

    When a node cannot be asked, the next one is: each knows all of its cluster.
    """

    def __init__(self, apis: Sequence[Api], vhost: str, ca: Path | None = None) -> None:
        """`ca` is the file of the certificate authorities that are trusted; None: those of the system."""
        self.apis = tuple(apis)
        self.vhost = vhost
        self.ca = ca
        self._api = self.apis[0]

    @classmethod
    def from_settings(cls, settings: Settings) -> "Management":
        """The APIs at the configured URLs, or at the brokers' hosts and the default port."""
        brokers = [urlsplit(url) for url in settings.broker_url.split(";")]
        given = settings.proj_management_url
        apis = (
            [Api.beside(brokers[0], url) for url in given.split(";")]
            if given
            else [Api.beside(broker, None) for broker in brokers]
        )
        vhost = unquote(brokers[0].path[1:]) or "/"
        return cls(list(dict.fromkeys(apis)), vhost, settings.proj_broker_ca)

    @property
    def url(self) -> str:
        return self._api.url

    @property
    def user(self) -> str:
        return self._api.user

    @property
    def password(self) -> str:
        return self._api.password

    @property
    def api_url(self) -> str:
        """The address of the API including user and password, as Flower expects it."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{rest}/api/"

    def get(self, path: str) -> Any:
        """The answer to `GET /api/PATH`. Raises `ManagementUnavailable` with its reason."""
        return self._ask(path, lambda response: json.loads(response.read()))

    def text(self, path: str) -> str:
        """The answer to `GET /api/PATH` that is not JSON. Raises `ManagementUnavailable`."""
        return self._ask(path, lambda response: response.read().decode())

    def clock(self) -> float:
        """The broker's time in seconds since 1970, to half a second, since HTTP reports whole seconds.

        Raises `ManagementUnavailable`.
        """
        return 0.5 + self._ask(
            "whoami", lambda response: parsedate_to_datetime(response.headers["Date"] or "").timestamp()
        )

    def _ask(self, path: str, read: Callable[[http.client.HTTPResponse], T]) -> T:
        first = self.apis.index(self._api)
        problem: Exception | None = None
        for api in (*self.apis[first:], *self.apis[:first]):
            self._api = api
            try:
                return within(TIMEOUT, partial(self._request, path, read))
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = error
        self._api = self.apis[first]
        assert problem is not None
        raise self._unreachable(problem) from problem

    def _request(self, path: str, read: Callable[[http.client.HTTPResponse], T]) -> T:
        """What `read` makes of the answer. No proxy and no redirect is used: they would see the password."""
        login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        url = urlsplit(self.url)
        with closing(self._connection(url.netloc)) as connection:
            connection.request("GET", f"{url.path}/api/{path}", headers={"Authorization": f"Basic {login}"})
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise self._refusal(response, path)
            return read(response)

    def _connection(self, address: str) -> http.client.HTTPConnection:
        if self.url.startswith("https:"):
            return http.client.HTTPSConnection(address, timeout=TIMEOUT, context=tls.context(self.ca))
        return http.client.HTTPConnection(address, timeout=TIMEOUT)

    def of_vhost(self, kind: str, name: str = "", **options: object) -> Any:
        """The answer about all of a kind (`queues`, `exchanges` …) in the virtual host, or about one."""
        return self.get(self.path(kind, name, **options))

    def path(self, kind: str, name: str = "", **options: object) -> str:
        """The path of all of a kind in the virtual host, or of one; `options` are those of the API."""
        path = "/".join((kind, *(quote(each, safe="") for each in (self.vhost, name) if each)))
        return f"{path}?{urlencode(options, safe=',')}" if options else path

    def _refusal(self, answer: http.client.HTTPResponse, path: str) -> ManagementUnavailable:
        if answer.status == http.HTTPStatus.UNAUTHORIZED:
            return ManagementRefused(
                f"the management API at {self.url} refused user {self.user!r}: "
                "its password is wrong, or it lacks the tag 'monitoring'",
                "set PROJ_MANAGEMENT_URL with a user that has it, or: "
                f"rabbitmqctl set_user_tags {self.user} monitoring",
            )
        if answer.status == http.HTTPStatus.NOT_FOUND:
            return ManagementUnavailable(
                f"the management API at {self.url} has no {unquote(path)!r}", f"{_CHECK} and AMQP_VHOST"
            )
        return ManagementUnavailable(
            f"the management API at {self.url} answered {answer.status} {answer.reason}", _CHECK
        )

    def _unreachable(self, error: Exception) -> ManagementUnavailable:
        where = " or ".join(api.url for api in self.apis)
        if isinstance(error, ConnectionRefusedError):
            return ManagementUnavailable(
                f"no management API answers at {where}",
                "switch it on with: rabbitmq-plugins enable rabbitmq_management; or set PROJ_MANAGEMENT_URL",
            )
        if isinstance(error, ssl.SSLError):
            host = urlsplit(self.url).hostname or ""
            return ManagementUnavailable(*tls.explain(error, host, f"the management API at {self.url}"))
        if isinstance(error, TimeoutError):
            return ManagementUnavailable(f"the management API at {where} does not answer in time", _CHECK)
        if isinstance(error, OSError):
            words = error.strerror or str(error)
            return ManagementUnavailable(f"the management API at {where} cannot be reached: {words}", _CHECK)
        return ManagementUnavailable(f"the program that answers at {self.url} is no management API", _CHECK)
