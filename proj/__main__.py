"""The entry point of `proj` and of `python -m proj`."""

import sys

from proj.logs import streams


def main() -> None:
    """Run the command line; `proj --help` and `proj health` run without importing click."""
    streams.prepare()
    if sys.argv[1:] == ["--help"]:
        from proj.cli import help_text

        if help_text.fits_terminal():
            try:
                sys.stdout.write(help_text.read())
                sys.stdout.flush()
                return
            except OSError:
                pass  # raised again below, where errors are reported in one line
    if sys.argv[1:2] == ["health"]:
        from proj.cli import health_text

        options = health_text.parse(sys.argv[2:])
        if options:
            try:  # noqa: SIM105  contextlib takes time
                sys.exit(health_text.run(**options))
            except Exception:
                pass  # raised again below, where errors are reported in one line
    from proj.cli.main import proj

    proj(prog_name="proj")


if __name__ == "__main__":
    main()
