"""`make check-links`: does every link of the pages and labs lead somewhere?

Links inside the repository must name a file that is there, and a heading in it (also a unit test, without a network).
Links to other hosts must answer: a page or a host that is gone fails; a host that refuses or is busy is only named.
"""

import json
import re
import socket
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
from markdown_it import MarkdownIt

from fedgen_lab.course import REPOSITORY

ROOT = Path(__file__).resolve().parents[1]
GONE = (404, 410)
BROWSER = {
    "User-Agent": "Mozilla/5.0 (link check of a course)"
}  # some hosts answer nothing that looks like a script


def pages(root=ROOT):
    """All Markdown pages and labs."""
    patterns = ("*.md", ".github/**/*.md", "data/*.md", "docs/**/*.md", "labs/*.ipynb")
    return sorted(path for pattern in patterns for path in root.glob(pattern))


def markdown(path):
    """The Markdown of a page, or of all text cells of a lab."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def links(path):
    """The targets of all links and pictures on a page, code left out."""
    targets = []
    for token in MarkdownIt().parse(markdown(path)):
        for part in token.children or [token]:
            if part.type in ("html_inline", "html_block"):
                targets += re.findall(r"""(?:src|href)=["']([^"']+)""", part.content)
            targets += [part.attrs[name] for name in ("href", "src") if name in part.attrs]
    return targets


def anchors(path):
    """The names of a page's headings, as GitHub makes them, and as Jupyter does."""
    tokens = MarkdownIt().parse(markdown(path))
    heads = [
        after.content
        for token, after in zip(tokens, tokens[1:], strict=False)
        if token.type == "heading_open"
    ]
    github = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
    return github | {head.replace(" ", "-") for head in heads}


def file_in_repository(url):
    """The path that a link to this repository on GitHub, Binder or Colab names, else None."""
    parts, name = urlsplit(url), REPOSITORY.removeprefix("https://github.com/")
    if parts.netloc == "mybinder.org":
        return parse_qs(parts.query).get("labpath", [""])[0]
    if (
        parts.netloc in ("github.com", "colab.research.google.com")
        and f"{name}/blob/main/" in parts.path
    ):
        return unquote(parts.path.partition("/blob/main/")[2])
    return None


def broken_inside(path, root=ROOT):
    """Every link on a page that leads to a file or heading of the repository that isn't there, as a sentence."""
    broken = []
    for target in links(path):
        parts = urlsplit(target)
        if parts.scheme == "mailto":
            continue
        inside = file_in_repository(target)
        if parts.scheme and inside is None:
            continue  # another host's
        place = (
            root / inside
            if inside is not None
            else path.parent / unquote(parts.path)
            if parts.path
            else path
        )
        if not place.exists():
            broken.append(f"{path.relative_to(root)}: no file for {target}")
        elif (
            parts.fragment
            and place.suffix in (".md", ".ipynb")
            and unquote(parts.fragment) not in anchors(place)
        ):
            broken.append(f"{path.relative_to(root)}: no heading for {target}")
    return broken


def ask(url, tries=3, pause=5):
    """What the address says: "fine", "gone", or why that can't be told ("busy: 429", "no answer: ...")."""
    said = ""
    for attempt in range(tries):
        time.sleep(pause * attempt)
        try:
            with httpx.stream(
                "GET", url, headers=BROWSER, timeout=30, follow_redirects=True
            ) as answer:
                if answer.is_success:
                    return "fine"
                if answer.status_code in GONE:
                    return "gone"
                said = f"busy: {answer.status_code}"
        except httpx.HTTPError as error:
            said = f"no answer: {error}" if has_address(urlsplit(url).hostname) else "gone"
    return said


def has_address(host):
    """Whether the name of a host leads to an address at all."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def foreign(paths):
    """Addresses at other hosts -> the pages that link to them; what stands behind "#" left out."""
    holders = defaultdict(set)
    for path in paths:
        for target in links(path):
            if target.startswith(("http://", "https://")):
                holders[target.partition("#")[0]].add(path.name)
    return holders


def check_foreign(urls, pause=1.0):
    """The verdict of `ask` on every address; each host is asked one thing at a time, with a pause after it."""
    hosts = defaultdict(list)
    for url in urls:
        hosts[urlsplit(url).netloc].append(url)

    def ask_host(host):
        verdicts = {}
        for url in hosts[host]:
            silent = any(
                verdict.startswith("no answer") for verdict in verdicts.values()
            )  # then it won't soon
            verdicts[url] = ask(url, tries=1 if silent else 3)
            time.sleep(pause)
        return verdicts

    with ThreadPoolExecutor(8) as at_once:
        return {
            url: verdict
            for verdicts in at_once.map(ask_host, hosts)
            for url, verdict in verdicts.items()
        }


def main():
    """Check everything; the exit status is 1 when a link is broken, or when no host answers at all."""
    broken = [line for path in pages() for line in broken_inside(path)]
    holders = foreign(pages())
    verdicts = check_foreign(holders)
    for url, verdict in sorted(verdicts.items()):
        line = f"{url} ({', '.join(sorted(holders[url]))}): {verdict}"
        if verdict == "gone":
            broken.append(line)
        elif verdict != "fine":
            print("can't tell:", line)
    print(
        f"{len(verdicts)} addresses at other hosts, {list(verdicts.values()).count('fine')} fine."
    )
    if verdicts and "fine" not in verdicts.values():
        broken.append("No host answers: is there a network?")
    print("\n".join(broken) or "No link is broken.")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
