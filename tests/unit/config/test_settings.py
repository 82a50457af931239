"""The settings: where they come from, and what Celery is told."""

from pathlib import Path

import kombu
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from proj import celeryconfig, config, state_dir
from proj.errors import ConfigError
from proj.rabbitmq.management import Management


def test_default_broker_is_rabbitmq_at_its_usual_place() -> None:
    """Without any setting it is guest on localhost, port 5672."""
    assert config.load().broker_url == "amqp://guest:guest@localhost:5672/%2F"


def test_parts_make_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """The five AMQP settings are put together."""
    for name, value in {"HOST": "rabbit", "PORT": "5673", "USER": "u", "PASSWORD": "p", "VHOST": "v"}.items():
        monkeypatch.setenv(f"AMQP_{name}", value)

    assert config.load().broker_url == "amqp://u:p@rabbit:5673/v"


def test_url_wins_over_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """CELERY_BROKER_URL is taken as it is, several of them too."""
    monkeypatch.setenv("AMQP_HOST", "elsewhere")
    monkeypatch.setenv("CELERY_BROKER_URL", "amqps://one;amqps://two:5671/v")

    assert config.load().broker_url == "amqps://one;amqps://two:5671/v"


def test_environment_wins_over_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.env` in the working folder is read, and the process's environment wins."""
    Path(".env").write_text("AMQP_HOST=from-file\nAMQP_USER=from-file\n")
    monkeypatch.setenv("AMQP_USER", "from-environment")

    settings = config.load()

    assert (settings.amqp_host, settings.amqp_user) == ("from-file", "from-environment")


def test_names_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cartography library PROJ has settings of the same prefix."""
    monkeypatch.setenv("PROJ_DATA", "/usr/share/proj")
    monkeypatch.setenv("PROJ_NETWORK", "ON")
    Path(".env").write_text("RABBITMQ_WORKER_PASSWORD=x\nPROJ_LIB=/usr/share/proj\n# PROJ_STATEDIR=/tmp\n")

    config.load()


@pytest.mark.parametrize(
    "line", [None, "PROJ_STATEDIR=/tmp\n", "# A comment.\n export PROJ_STATEDIR = '/tmp'"]
)
def test_slip_is_told_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch, line: str | None) -> None:
    """A name that is nearly one of ours is a slip, in the environment and in a `.env` file."""
    if line:
        Path(".env").write_text(line)
    else:
        monkeypatch.setenv("PROJ_STATEDIR", "/tmp")

    with pytest.raises(ConfigError, match=r"unknown setting PROJ_STATEDIR \(did you mean PROJ_STATE_DIR\?"):
        config.load()


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("gone.pem", None, "No such file"),
        ("words.pem", "no certificate", "expected a file of certificates in PEM, got"),
    ],
)
def test_a_file_of_authorities_that_has_none(
    monkeypatch: pytest.MonkeyPatch, file: str, text: str | None, reason: str
) -> None:
    """It is told at the start, and not as a broker that nobody trusts."""
    if text:
        Path(file).write_text(text)
    monkeypatch.setenv("PROJ_BROKER_CA", file)

    with pytest.raises(ConfigError, match=reason):
        config.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accept_content", ["json"]),
        ("task_acks_late", True),
        ("worker_prefetch_multiplier", 1),
        ("task_reject_on_worker_lost", True),
        ("task_acks_on_failure", False),
        ("task_acks_on_timeout", False),
        ("task_default_delivery_mode", 2),
        ("task_create_missing_queues", False),
        ("broker_connection_max_retries", None),
        ("worker_send_task_events", False),
        ("timezone", "UTC"),
    ],
)
def test_celery_is_told_what_the_promise_rests_on(name: str, value: object) -> None:
    """A change of one of these is a change of the promise."""
    assert celeryconfig.configuration(config.load())[name] == value


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ("photos/tasks.py", r"'photos/tasks.py' is not the name of a module, such as photos.tasks"),
        ("a,,b", "'' is not the name of a module"),
        ("a,", "'' is not"),
        ("a b", "'a b' is not"),
        ("photos.class", "'photos.class' is not"),
        (".tasks", "'.tasks' is not"),
        ("a.b, c, a.b", "'a.b' is named twice"),
    ],
)
def test_names_that_modules_cannot_have(monkeypatch: pytest.MonkeyPatch, modules: str, reason: str) -> None:
    """The setting is wrong, before anything is imported."""
    monkeypatch.setenv("PROJ_TASKS", modules)
    with pytest.raises(ConfigError, match=f"PROJ_TASKS cannot be used: {reason}"):
        config.load()


@pytest.mark.parametrize("modules", ["", "photos.tasks", " photos.tasks , mail", "proj.tasks,mail"])
def test_modules_with_tasks(monkeypatch: pytest.MonkeyPatch, modules: str) -> None:
    """The project's own comes first, once."""
    monkeypatch.setenv("PROJ_TASKS", modules)

    named = [name.strip() for name in modules.split(",") if name]
    assert config.load().task_modules == ("proj.tasks", *(each for each in named if each != "proj.tasks"))


def test_publishing_is_confirmed_and_bounded() -> None:
    """The socket's times are those of the one setting."""
    options = celeryconfig.configuration(config.load())["broker_transport_options"]

    assert options == {"confirm_publish": True, "read_timeout": 10.0, "write_timeout": 10.0, "ca": None}


def test_time_limits_are_below_the_brokers() -> None:
    """Soft before hard, and both before RabbitMQ ends the channel."""
    settings = config.load()
    told = celeryconfig.configuration(settings)

    assert settings.proj_task_soft_time_limit < told["task_time_limit"] < config.CONSUMER_TIMEOUT


def test_every_name_that_celery_is_told_is_one_that_it_knows() -> None:
    """A setting with a slip in its name would be ignored."""
    from celery.app.defaults import NAMESPACES, flatten

    known = {name for name, _ in flatten(NAMESPACES)}
    assert set(celeryconfig.configuration(config.load())) <= known


_ODD_TEXTS = st.one_of(
    st.text(st.characters(), max_size=20),
    st.text("amqp:/@?#[]%;~.s1 \0\n\udcff", max_size=20),
    st.sampled_from(["amqp://", "db+sqlite:///", "http://", "~nobody-has-this-name/", "-", "1" * 5000]),
).flatmap(lambda start: st.text("u:@/[]?#%h0", max_size=12).map(lambda end: start + end))


@given(name=st.sampled_from(sorted(config.Settings.model_fields)), value=_ODD_TEXTS)
def test_any_value_is_taken_or_refused_in_one_line(name: str, value: str) -> None:
    """Whatever text a setting has, it can be used, or one short line says what was expected."""
    with pytest.MonkeyPatch.context() as patch:
        if "\0" in value:  # which no environment holds, and a file can
            Path(".env").write_text(f"{name.upper()}='{value}'", errors="replace")
        else:
            patch.setenv(name.upper(), value)
        try:
            settings = config.load()
            celeryconfig.configuration(settings)
            for url in settings.broker_url.split(";"):
                kombu.Connection(url).as_uri()
            assert settings.safe_broker_url
            assert settings.state_dir.is_absolute()
            Management.from_settings(settings)
            said = ""
        except ConfigError as error:
            said = str(error)
        finally:
            Path(".env").unlink(missing_ok=True)
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AMQP_HOST", "rabbit:5673", "the port is set with AMQP_PORT, got 'rabbit:5673'"),
        ("AMQP_HOST", "[::1]", "a host name or an address alone"),
        ("AMQP_HOST", "amqp://u:s3cret@h", r"got 'amqp://u:\*\*@h'"),
        ("AMQP_USER", "\udcff", "AMQP_USER cannot be used: it is not UTF-8 text"),
        ("AMQP_PASSWORD", "s3cret\udcff", "AMQP_PASSWORD cannot be used: it is not UTF-8 text"),
        ("PROJ_STATE_DIR", "~nobody-has-this-name/x", "the home folder ~nobody-has-this-name is not known"),
        ("PROJ_BROKER_CA", "~nobody-has-this-name/x", "the home folder ~nobody-has-this-name is not known"),
        ("AMQP_PORT", "1" * 500, "got '1{79}…"),
        ("PROJ_RESULT_EXPIRES", "-1", "greater than or equal to 0, got '-1'"),
        ("PROJ_RESULT_EXPIRES", "99999999999", "less than or equal to 3153600000, got '99999999999'"),
        ("PROJ_RESULT_EXPIRES", "7d", "a valid integer"),
    ],
)
def test_value_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    """The line says what to do, and holds no password."""
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=reason) as caught:
        config.load()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "folder", ["a%20b", "a?b", "a#b", "a b", "a\nb", "[a]", "caf\udce9", "~a", "a;b@c:d"]
)
def test_any_state_folder_is_where_results_are_stored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str
) -> None:
    """Also one whose name means something else in a URL."""
    monkeypatch.setenv("PROJ_STATE_DIR", str(tmp_path / folder))
    url = make_url(config.load().result_backend.removeprefix("db+"))

    assert url.database == str(tmp_path / folder / "results.sqlite3")
    assert not url.query


@pytest.mark.parametrize("relative", [True, False])
def test_working_folder_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, relative: bool) -> None:
    """It holds no settings; a state folder that is named from it is told."""
    monkeypatch.setenv("PROJ_STATE_DIR", "state" if relative else str(tmp_path / "state"))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    if relative:
        with pytest.raises(ConfigError, match="the working folder is not known"):
            config.load()
        with pytest.raises(ConfigError, match=r"the working folder is not known.* \(set PROJ_STATE_DIR"):
            state_dir.find()
    else:
        assert str(config.load().state_dir) == state_dir.find() == str(tmp_path / "state")
