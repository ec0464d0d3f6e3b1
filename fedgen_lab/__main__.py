"""The command `fedgen-lab`, also `python -m fedgen_lab`: the course in a folder of one's own, open in JupyterLab."""

import argparse
import os
import sys
from pathlib import Path

from fedgen_lab import __version__, course
from fedgen_lab.labs_folder import RECORD, copy_labs

FOLDER = "fedgen-labs"
START = "00_start_here.ipynb"


def main(arguments=None):
    """Run the command with `arguments`, else with those of the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="fedgen-lab",
        description=f"Copy the labs to ./{FOLDER} and open them in JupyterLab. What you changed there stays as it is.",
    )
    parser.add_argument("--version", action="version", version=f"fedgen-lab {__version__}")
    parser.add_argument(
        "--no-browser", action="store_true", help="open no browser; print the address"
    )
    parser.add_argument(
        "--port",
        type=int,
        help="the port of JupyterLab; without it, the first free one from 8888 on",
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("check", help="say whether this machine is ready for the labs")
    pages = commands.add_parser(
        "html", help="write executed copies of the labs to ./html, to read without Jupyter"
    )
    pages.add_argument(
        "labs", nargs="*", metavar="LAB", help="a lab such as 03; without any, all labs"
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "check":
            return check()
        if options.command == "html":
            from fedgen_lab.html_copies import write_pages

            return write_pages(options.labs, Path("html"))
        return start(options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def check():
    """Print what lab 00's self-check finds; 1 when something is not fine, else 0."""
    table = course.self_check()
    for _, row in table.iterrows():
        print(f"{'fine' if row['fine'] == 'yes' else 'NOT FINE':8}  {row['what']}: {row['found']}")
        if row["what to do"]:
            print(f"          {row['what to do']}")
    return int((table["fine"] != "yes").any())


def start(options):
    """Copy the labs, say what became of a learner's own, and run JupyterLab until it ends."""
    folder = Path.cwd()
    if not (folder / RECORD).exists():  # inside the copies, the command works on them
        folder = folder / FOLDER
    report(copy_labs(folder), folder)
    print(f"The labs are in {folder}. End JupyterLab with Ctrl-C.", flush=True)
    from jupyterlab.labapp import main as jupyterlab

    command = [f"--ServerApp.root_dir={folder}", f"--LabApp.default_url=/lab/tree/{START}"]
    if options.port is not None:
        command.append(f"--port={options.port}")
    if options.no_browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    return jupyterlab(command)


def report(done, folder):
    """Say which files in `folder` were updated, and which were kept because the learner changed them."""
    if done["updated"]:
        print(f"Updated to version {__version__}: {', '.join(done['updated'])}.")
    if done["yours"]:
        print(f"Kept as you left them: {', '.join(done['yours'])}.")
    if done["outdated"]:
        print(
            f"Kept as you left them, though version {__version__} has newer ones: {', '.join(done['outdated'])}. "
            "To get a newer one, rename yours and start again."
        )


if __name__ == "__main__":
    sys.exit(main())
