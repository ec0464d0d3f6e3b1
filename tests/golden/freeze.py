"""Record the golden outcomes: `python tests/golden/freeze.py [--accept NAME ...] [--only TEXT]`.

New outcomes are added and equal ones are left as they are. A number that differs is not overwritten: the command names
it and ends with status 1, unless `--accept` names the outcome. Say in the commit why it changed.
"""

import argparse
import logging
import os
import sys

os.environ.setdefault("FEDGEN_PROFILE", "test")  # as conftest.py sets it

from first_wing import OUTCOMES  # noqa: E402
from golden import FILE, differences, plain, read_frozen, write_frozen  # noqa: E402


def record(outcomes, path=FILE, accepted=(), only=""):
    """Compute `outcomes`, write what is new or accepted into `path`; returns sentences about what was refused."""
    frozen, refused = read_frozen(path), []
    if unknown := sorted(set(accepted) - set(outcomes)):
        return [f"There is no outcome {unknown[0]!r} to accept; the names stand in {path.name}."]
    for name, (compute, tolerance) in outcomes.items():
        if only not in name:
            continue
        now, before = plain(compute()), frozen.get(name)
        apart = (
            [] if before is None else differences(name, before["values"], now, before["tolerance"])
        )
        if apart and name not in accepted:
            refused += [*apart, f'To overwrite it: python tests/golden/freeze.py --accept "{name}"']
        elif apart or before is None:
            frozen[name] = {"tolerance": tolerance, "values": now}
        else:
            before["tolerance"] = tolerance
    for name in sorted(frozen.keys() - outcomes.keys()):
        if name in frozen and not only:
            refused.append(
                f"{name}: nothing computes it any more; delete it from {path.name} if that is meant."
            )
    write_frozen(frozen, path)
    return refused


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python tests/golden/freeze.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--accept", action="append", default=[], metavar="NAME", help="overwrite this outcome"
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only outcomes with this text in their name"
    )
    asked = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    refused = record(OUTCOMES, FILE, asked.accept, asked.only)
    print("\n".join(refused) or f"{FILE.name} holds all outcomes.")
    sys.exit(bool(refused))


if __name__ == "__main__":
    main()
