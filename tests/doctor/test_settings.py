"""Settings, a result store and passwords that break the promise are found."""

import json
from pathlib import Path

import pytest

from proj import queues
from tests.lib.bundle import Bundle
from tests.lib.findings import about, bad, doctor, finds, results

pytestmark = pytest.mark.used_vhost


@pytest.mark.celery_docs("Tasks: acks_late=False")
def test_settings_that_break_the_promise(declared: Bundle) -> None:
    """Confirms that are off, a task that outlasts the broker's patience, one that is acknowledged early."""
    declared.switch_off("celeryconfig.py", '"confirm_publish": True,', "")
    for name in ("read_timeout", "write_timeout"):
        declared.switch_off("celeryconfig.py", f'"{name}": settings.proj_publish_timeout,', "")
    declared.add_task('@app.task(name="proj.tasks.long", time_limit=7200)\ndef long() -> None: ...')
    declared.add_task('@app.task(name="proj.tasks.careless", acks_late=False)\ndef careless() -> None: ...')

    found = doctor(declared)

    for name in ("confirm_publish", "read_timeout", "write_timeout"):
        assert about(found, "publishing", name)["level"] == "error"
    assert about(found, "time_limits", "proj.tasks.long", "7200 s", "1800 s")["level"] == "error"
    assert about(found, "tasks", "proj.tasks.careless", "acks_late=False")["level"] == "warning"
    (declared.copy_of_the_project() / "proj/tasks.py").write_text(
        (Path(queues.__file__).parent / "tasks.py").read_text()
    )
    declared.heal()
    finds(declared, ("warning", "present_workers"))


def test_result_store_that_cannot_be_written(bundle: Bundle) -> None:
    """The reason is told without the password; a good one is left as empty as it was."""
    file = bundle.folder / "state/results.sqlite3"
    file.parent.mkdir()
    file.write_text("this is no database, and longer than a header of one would be " * 10)
    url = "db+postgresql://user:s3cret@127.0.0.1:1/db"

    broken = about(doctor(bundle), "result_store", "file is not a database")
    down = about(doctor(bundle, env={"CELERY_RESULT_BACKEND": url}), "result_store", "cannot be written")
    file.unlink()
    mended = doctor(bundle)

    assert broken["level"] == down["level"] == "error"
    assert "s3cret" not in json.dumps(down)
    assert str(file) in broken["fix"]
    assert not [each for each in bad(mended) if each[0] == "error"]
    assert results(bundle) == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [("db+firebird://u:s3cret@h/d", "no database 'firebird'"), ("nosuch://u:s3cret@h", "nosuch")],
)
def test_result_store_that_cannot_be_opened(bundle: Bundle, url: str, words: str) -> None:
    """A URL of no store, or of one whose library is missing, is an error too."""
    found = doctor(bundle, env={"CELERY_RESULT_BACKEND": url})

    assert about(found, "result_store", "CELERY_RESULT_BACKEND cannot be used", words)["level"] == "error"
    assert "s3cret" not in json.dumps(found)


def test_results_that_are_messages(declared: Bundle) -> None:
    """With `rpc://` there is nothing to write, which is no error."""
    finding = about(doctor(declared, env={"CELERY_RESULT_BACKEND": "rpc://"}), "result_store")

    assert (finding["level"], "not stored" in finding["what"]) == ("info", True)


def test_check_that_fails_hides_no_other(declared: Bundle) -> None:
    """It is an error, without the text of the exception, which may hold a password."""
    before = {each["check"] for each in doctor(declared)}
    declared.switch_off("doctor/settings.py", "is_local = cache(", "is_local = [].index('s3cret') or (")
    done = declared.proj("doctor", "--json")
    found = json.loads(done.stdout)

    assert done.returncode == 1
    assert about(found, "credentials", "credentials: the check failed with ValueError")["level"] == "error"
    assert {each["check"] for each in found} == before
    assert "s3cret" not in done.stdout + done.stderr
    assert "s3cret" in declared.proj("--debug", "doctor").stderr


def test_passwords(bundle: Bundle) -> None:
    """What is guessed first, or travels in the open, is told, and never shown."""
    env = {
        "CELERY_BROKER_URL": "amqp://someone:admin@rabbit.invalid/;amqp://me:l0ngs3cret@rabbit2.invalid",
        "PROJ_MANAGEMENT_URL": "http://me:l0ngs3cret@rabbit.invalid",
        "CELERY_RESULT_BACKEND": "db+postgresql://user@store.invalid/db",
    }
    done = bundle.proj("doctor", "--json", env=env)
    found = json.loads(done.stdout)

    about(found, "credentials", "'someone' at rabbit.invalid is easily guessed")
    about(found, "credentials", "rabbit.invalid is used over plain amqp")
    about(found, "credentials", "rabbit2.invalid is used over plain amqp")
    about(found, "credentials", "rabbit.invalid is used over plain http")
    assert about(found, "credentials", "no password for the database at store.invalid")["level"] == "info"
    assert "l0ngs3cret" not in done.stdout + done.stderr
    good = {
        "CELERY_BROKER_URL": "amqps://me:l0ngs3cret@rabbit.invalid",
        "PROJ_MANAGEMENT_URL": "https://h.invalid",
    }
    assert "credentials" not in [check for _, check in bad(doctor(bundle, env=good))]
