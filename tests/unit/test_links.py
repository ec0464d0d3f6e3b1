"""Every link inside the repository leads to a file and a heading; the check of other hosts tells gone from busy."""

import http.server
import threading

import pytest
from links import anchors, broken_inside, check_foreign, foreign, links, pages

AWAY = ["http://127.0.0.1:9/", "http://no-such-host.invalid/"]
PAGE = """# One & two

[here](#one--two) [there](other.md#deep-down) ![picture](a%20b.svg) <img src="gone.png">
[lab](https://github.com/fedgen-lab/fedgen-lab/blob/main/labs/99.ipynb) [page](https://example.org/x#part)

`[code](nowhere.md)` [no heading](other.md#nowhere)
"""


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_link_inside_the_repository_leads_somewhere(page):
    assert broken_inside(page) == []


def test_files_headings_and_links_to_the_repository_itself_are_looked_up(tmp_path):
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    (tmp_path / "other.md").write_text("## Deep down\n", encoding="utf-8")
    (tmp_path / "a b.svg").touch()
    assert broken_inside(tmp_path / "page.md", tmp_path) == [
        "page.md: no file for gone.png",
        "page.md: no file for https://github.com/fedgen-lab/fedgen-lab/blob/main/labs/99.ipynb",
        "page.md: no heading for other.md#nowhere",
    ]
    assert "one--two" in anchors(tmp_path / "page.md")
    assert "nowhere.md" not in links(tmp_path / "page.md")
    assert "https://example.org/x" in foreign([tmp_path / "page.md"])


def test_a_page_that_is_gone_is_told_from_a_host_that_is_busy_or_away(monkeypatch):
    class Host(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path[1:]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words):
            pass

    monkeypatch.setattr("links.time.sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        verdicts = check_foreign(
            [f"{host}/{status}" for status in (200, 404, 410, 429, 503)] + AWAY
        )
        server.shutdown()
    assert [verdicts[f"{host}/{status}"] for status in (200, 404, 410)] == ["fine", "gone", "gone"]
    assert [verdicts[f"{host}/{status}"] for status in (429, 503)] == ["busy: 429", "busy: 503"]
    assert verdicts[AWAY[0]].startswith("no answer: ") and verdicts[AWAY[1]] == "gone"
