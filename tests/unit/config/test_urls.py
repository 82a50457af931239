"""URLs of brokers and stores: what is refused at the start, and that no password is shown."""

from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from proj import config
from proj.errors import ConfigError


@given(user=st.text(min_size=1), password=st.text(), vhost=st.text(min_size=1))
def test_any_user_password_and_vhost_survive_the_url(user: str, password: str, vhost: str) -> None:
    """Whatever characters they have, they come out of the URL as they went in."""
    # Lone surrogates cannot be written in UTF-8, and so in no URL.
    for text in (user, password, vhost):
        if any("\ud800" <= char <= "\udfff" for char in text):
            return
    settings = config.Settings.model_construct(
        celery_broker_url=None,
        amqp_host="h",
        amqp_port=1,
        amqp_user=user,
        amqp_password=SecretStr(password),
        amqp_vhost=vhost,
    )

    url = urlsplit(settings.broker_url)

    assert (unquote(url.username or ""), unquote(url.password or "")) == (user, password)
    assert unquote(url.path.removeprefix("/")) == vhost


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("amqps://u:s3cret@a;amqp://u:s3cret@b", "a failover must not switch TLS off"),
        ("amqps://u:s3cret@a/?ssl_cert_reqs=CERT_NONE", "TLS is set with amqps://"),
        ("amqp://u:s3cret@a//?ssl=1", "TLS is set with amqps://"),
    ],
)
def test_no_url_weakens_tls(monkeypatch: pytest.MonkeyPatch, url: str, reason: str) -> None:
    """Neither what kombu would take from its query, nor a node that speaks none."""
    monkeypatch.setenv("CELERY_BROKER_URL", url)

    with pytest.raises(ConfigError, match=reason) as caught:
        config.load()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("heartbeat=30&connection_attempts=3", "?heartbeat: "),
        ("heartbeat", "?heartbeat: "),
        ("s3cret=s3cret@host/v", "?: "),
    ],
)
def test_options_of_other_libraries_are_refused(
    monkeypatch: pytest.MonkeyPatch, query: str, named: str
) -> None:
    """Such as pika's, of which kombu would make an argument that it does not take."""
    monkeypatch.setenv("CELERY_BROKER_URL", f"amqp://u:s3cret@one/v;amqp://u:s3cret@two/v?{query}")

    with pytest.raises(ConfigError) as caught:
        config.load()
    assert f"CELERY_BROKER_URL cannot be used: leave out {named}" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMQP_HOST", "rabbit..example"),
        ("CELERY_BROKER_URL", "amqp://u:s3cret@one;amqp://u:s3cret@.svc.local"),
        ("CELERY_BROKER_URL", f"amqp://u:s3cret@{'r' * 64}:5672/v"),
        ("CELERY_BROKER_URL", "amqp://u:s3cret@rabbit%2E%2Eexample"),
        ("PROJ_MANAGEMENT_URL", "http://u:s3cret@rabbit..example:15672"),
        ("PROJ_MANAGEMENT_URL", "http://u:s3cret@one:15672;http://u:s3cret@two..example:15672"),
    ],
)
def test_a_host_that_no_name_server_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """An empty or too long part of its name, as an empty variable leaves it, is told at the start."""
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=f"{name} cannot be used: expected a host name") as caught:
        config.load()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["localhost", "rabbit.example.", "bücher.example", "my_host", "127.0.0.1", "::1"]
)
def test_a_host_that_may_be_there(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Only a name server knows more."""
    monkeypatch.setenv("AMQP_HOST", host)

    assert config.load().amqp_host == host


@pytest.mark.parametrize("url", ["amqp://user:s3cret@host/v", "amqp://u:s3cret@a;amqp://u:s3cret@b"])
def test_url_for_people_has_no_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The password is not in what people see, nor in the settings as Python shows them."""
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "db+postgresql://u:s3cret/@host/db?password=s3cret")
    settings = config.load()

    assert "s3cret" not in settings.safe_broker_url
    assert settings.safe_result_backend == "db+postgresql://u:**@host/db"
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize("password", ["[s3cret", "s3]cret", "1/s3cret", "1#s3cret", "1?s3cret", "s3cret%zz"])
@pytest.mark.parametrize(
    ("name", "url"),
    [("CELERY_BROKER_URL", "amqp://u:{}@host/v"), ("PROJ_MANAGEMENT_URL", "http://u:{}@host:15672")],
)
def test_password_that_is_not_encoded(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str, password: str
) -> None:
    """It would be read as another host, or as none: the line says to encode it, and not what it is."""
    monkeypatch.setenv(name, url.format(password))
    with pytest.raises(ConfigError, match="percent-encoded, such as %40 for @") as caught:
        config.load()
    assert "s3" not in str(caught.value)

    monkeypatch.setenv(name, url.format(quote(password, safe="")))
    config.load()


@pytest.mark.parametrize("blank", [" ", "\t", "\n", "\u00a0"])
@pytest.mark.parametrize(
    ("name", "urls"),
    [
        (
            "CELERY_BROKER_URL",
            ["{}amqp://u:s3cret@h/v", "amqp://u:s3cret@h/v{}", "amqp://h;{}amqp://u:s3cret@g"],
        ),
        ("PROJ_MANAGEMENT_URL", ["{}http://u:s3cret@h:15672"]),
        ("CELERY_RESULT_BACKEND", ["{}db+postgresql://u:s3cret@h/d", "db+postgresql://u:s3cret@h/d{}"]),
    ],
)
def test_url_with_white_space(
    monkeypatch: pytest.MonkeyPatch, name: str, urls: list[str], blank: str
) -> None:
    """Kombu would take the URL after it for the name of a virtual host, and show its password."""
    for url in urls:
        monkeypatch.setenv(name, url.format(blank))
        with pytest.raises(ConfigError, match="without spaces") as caught:
            config.load()
        assert "s3" not in str(caught.value)


@pytest.mark.parametrize("password", ["[s3cret", "s3]cret", "s3：cret", "s3／cret"])  # noqa: RUF001
@pytest.mark.parametrize("url", ["db+postgresql://u:{}@host/d", "redis://:{}@host/0"])
def test_result_store_whose_url_cannot_be_split(
    monkeypatch: pytest.MonkeyPatch, url: str, password: str
) -> None:
    """What splits it would raise an error that holds its password."""
    monkeypatch.setenv("CELERY_RESULT_BACKEND", url.format(password))
    with pytest.raises(ConfigError, match="percent-encoded, such as %40 for @") as caught:
        config.load()
    assert "s3" not in str(caught.value)

    monkeypatch.setenv("CELERY_RESULT_BACKEND", url.format(quote(password, safe="")))
    config.load()
