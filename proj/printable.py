"""What is shown of texts that anyone may have written."""


def printable(text: str, keep: str = "") -> str:
    """The text without what would steer a terminal, but for the characters in `keep`."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def indented(name: str, text: str, width: int) -> str:
    """The text beside its name in a column of that width, its further lines below its first."""
    head, *rest = [printable(line) for line in text.splitlines()] or [""]
    return f"\n{' ' * (width + 1)}".join([f"{name:<{width}} {head}", *rest])
