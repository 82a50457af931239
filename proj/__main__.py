"""The entry point of `proj` and of `python -m proj`."""

from proj.cli.main import proj
from proj.logs import streams


def main() -> None:
    """Run the command line."""
    streams.prepare()
    proj(prog_name="proj")


if __name__ == "__main__":
    main()
