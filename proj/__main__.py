"""The entry point of `proj` and of `python -m proj`."""

import os
import sys


def main() -> None:
    """Run the command line; `proj --help` and `proj health` take no time for importing click."""
    _open_closed_streams()
    if sys.argv[1:] == ["--help"]:
        from proj.cli import help_text

        if help_text.fits_terminal():
            sys.stdout.write(help_text.read())
            return
    if sys.argv[1:2] == ["health"]:
        from proj.cli import health_text

        options = health_text.parse(sys.argv[2:])
        if options:
            try:  # noqa: SIM105  contextlib takes time
                sys.exit(health_text.run(**options))
            except Exception:
                pass  # it comes again below, where errors are put into words
    from proj.cli.main import proj

    proj(prog_name="proj")


def _open_closed_streams() -> None:
    """Let what is closed, as by `>&-`, lead nowhere; else the next file or connection has its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  the lowest number that is free


if __name__ == "__main__":
    main()
