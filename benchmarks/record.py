"""What a run has found, as a file: `build/bench.json`."""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rounds import Results


@dataclass(frozen=True)
class Record:
    """Versions, and the measurements of each row."""

    versions: dict[str, str]
    results: list[Results]

    @classmethod
    def read(cls, path: Path) -> "Record":
        """The rows of the file that still exist."""
        from benchmarks.rows import BENCHES  # here, since a row may need a broker's client

        kept = json.loads(path.read_text())
        known = [row for bench in BENCHES for row in bench.rows]
        return cls(
            kept["versions"],
            [Results(row, kept["rows"][row.key]["rounds"]) for row in known if row.key in kept["rows"]],
        )

    def joined(self, newer: "Record") -> "Record":
        """With the rows that were measured later; those of other versions are left out."""
        if self.versions != newer.versions:
            return newer
        from benchmarks.rows import BENCHES

        rows = {each.row.key: each for each in [*self.results, *newer.results]}
        order = [row.key for bench in BENCHES for row in bench.rows]
        return Record(newer.versions, sorted(rows.values(), key=lambda each: order.index(each.row.key)))

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        rows = {
            each.row.key: {
                "title": each.row.title,
                "unit": each.row.unit,
                "medians": {name: summary.median for name, summary in each.summaries.items()},
                "ratios": {
                    verdict.target.against: {"median": verdict.compared.median, "reached": verdict.reached}
                    for verdict in each.verdicts
                },
                "rounds": each.values,
            }
            for each in self.results
        }
        path.write_text(json.dumps({"versions": self.versions, "rows": rows}, indent=2) + "\n")
