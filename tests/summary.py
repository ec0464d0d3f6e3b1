"""The end of `make test`: what each stage ran and took, what failed, and the ten slowest tests of all.

`python tests/summary.py FOLDER [RED STAGES]`: FOLDER holds one JUnit file a stage, written by pytest; the stages named
after it ended badly. A stage can be red without a failed test, for example where pytest itself could not start.
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def cases(report):
    """The tests in the JUnit file `report`: (name, seconds, "passed", "failed" or "skipped") each."""
    outcomes = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((outcomes[child.tag] for child in case if child.tag in outcomes), "passed")
        yield f"{case.get('classname')}::{case.get('name')}", float(case.get("time")), outcome


def summary(folder, red):
    """The lines to print for the reports in `folder` and the names of the stages that ended badly."""
    lines, failed, slow = [], [], []
    for report in sorted(Path(folder).glob("*.xml"), key=lambda path: path.stat().st_mtime):
        tests = list(cases(report))
        wall = float(ElementTree.parse(report).find("testsuite").get("time"))
        outcomes = [outcome for _, _, outcome in tests]
        counts = [
            f"{outcomes.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped")
        ]
        lines.append(f"{report.stem:>12}: {', '.join(counts)} in {wall / 60:.1f} min")
        failed += [f"{report.stem}: {name}" for name, _, outcome in tests if outcome == "failed"]
        slow += [(seconds, f"{report.stem}: {name}") for name, seconds, _ in tests]
    lines += ["", "The slowest ten:"]
    lines += [f"{seconds:8.1f} s  {name}" for seconds, name in sorted(slow, reverse=True)[:10]]
    if failed:
        lines += ["", f"{len(failed)} failed:", *failed]
    lines += ["", f"Red: {', '.join(red)}." if red else "Every stage is green."]
    return lines


if __name__ == "__main__":
    folder, *red = sys.argv[1:]
    print("\n".join(["", *summary(folder, red)]))
    sys.exit(1 if red else 0)
