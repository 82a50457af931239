"""Results as words: a table for the terminal, and one for the documentation."""

from collections.abc import Iterator

from rich.table import Table

from benchmarks.rounds import Results, Summary, Verdict


def number(value: float) -> str:
    """Three digits, and thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def spread(summary: Summary) -> str:
    """The lowest and the highest, unless there was one round only."""
    if summary.lowest == summary.highest:
        return ""
    return f"{number(summary.lowest)}–{number(summary.highest)}"  # noqa: RUF001  from to


def verdict_of(verdict: Verdict, unit: str) -> str:
    """How we compare, what was to be reached, and whether it was."""
    target, value = verdict.target, verdict.compared.median
    bound = "at least" if target.at_least else "at most"
    if target.difference:
        compared, limit = f"{value:+.3g} {unit}", f"{bound} {target.limit:+g}"
    else:
        compared, limit = f"{value:.2f} ×", f"{bound} {target.limit:g}"  # noqa: RUF001  times
    word = "goal" if target.goal else "to reach"
    return f"{compared} ({word}: {limit}{'' if verdict.reached else '; NOT REACHED'})"


def lines(results: Results) -> Iterator[tuple[str, str, str, str]]:
    """For each contender: its name, median, spread, and how we compare with it."""
    verdicts: dict[str, list[str]] = {}
    for verdict in results.verdicts:
        verdicts.setdefault(verdict.target.against, []).append(verdict_of(verdict, results.row.unit))
    for place, (name, summary) in enumerate(results.summaries.items()):
        compared = "; ".join(verdicts.get(name, []))
        if place and not compared and (ratio := results.ratio(name)):
            compared = f"{ratio.median:.2f} ×"  # noqa: RUF001  times
        yield name, number(summary.median), spread(summary), compared


def table(results: list[Results]) -> Table:
    """For the terminal."""
    shown = Table("", "", "median", "lowest–highest", "proj is", title="Benchmarks")  # noqa: RUF001
    for each in results:
        first = f"{each.row.title} ({each.row.unit})"
        for name, median, between, compared in lines(each):
            style = "bold red" if "NOT REACHED" in compared else None
            shown.add_row(first, name, median, between, compared, style=style)
            first = ""
        shown.add_section()
    return shown


def markdown(results: list[Results]) -> str:
    """For the documentation."""
    found = ["| | | median | lowest–highest | proj is |", "| --- | --- | ---: | --- | --- |"]  # noqa: RUF001
    for each in results:
        first = f"**{each.row.title}**, {each.row.unit}"
        for name, median, between, compared in lines(each):
            compared = compared.replace("NOT REACHED", "**not reached**")
            found.append(f"| {first} | {name} | {median} | {between} | {compared} |")
            first = ""
    return "\n".join(found)
