"""The entry point of `proj` and of `python -m proj`."""

import sys


def main() -> None:
    """Run the command line; `proj --help` is answered before anything that takes time is imported."""
    if sys.argv[1:] == ["--help"]:
        from proj.cli import help_text

        if help_text.fits_terminal():
            sys.stdout.write(help_text.read())
            return
    from proj.cli.main import proj

    proj(prog_name="proj")


if __name__ == "__main__":
    main()
