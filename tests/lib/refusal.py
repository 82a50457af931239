"""How a program of the project ends that cannot do what it was told."""

from tests.lib.bundle import Bundle


def refuses(bundle: Bundle, code: int, *parts: str, command: tuple[str, ...], **env: str) -> None:
    """Run a command, and check the one line that it ends with; no password may be in it."""
    done = bundle.proj(*command, env=env)

    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr
    assert "s3cret" not in done.stderr
