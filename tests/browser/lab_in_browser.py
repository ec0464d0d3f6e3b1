"""Opens a lab in JupyterLab in a headless Chromium, the way a learner does, and watches what the page does."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "only-for-this-test"
QUIET = (  # Chromium itself must not call home either
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


# Every chart that is on the page is as wide as its place, and has been so for a moment.
CHARTS_FIT = """async width => {
    const fit = () => innerWidth === width && [...document.querySelectorAll('.js-plotly-plot')].every(chart => {
        const plot = chart.querySelector('.main-svg')?.getBoundingClientRect().width;
        return !chart.checkVisibility() || Math.abs(plot - chart.getBoundingClientRect().width) < 2;
    });
    if (!fit()) return false;
    await new Promise(done => setTimeout(done, 150));
    return fit();
}"""


def chromium():
    """The path of a Chromium; without one the test is skipped, which under CI=true is a failure."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    reason = (
        "no chromium on the PATH: install it (Debian: apt install chromium) to run the browser test"
    )
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def jupyterlab(folder, warm=False):
    """A JupyterLab server on a free port of this machine with a copy of the labs in `folder`. Yields its address.

    warm: kernels start with libraries in memory; see warm_kernels.py.
    """
    for lab in (ROOT / "labs").glob("*.ipynb"):
        shutil.copy(lab, folder)
    shutil.copytree(ROOT / "labs" / "images", folder / "images")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        key: value for key, value in os.environ.items() if key != "FEDGEN_RUN"
    }  # dashboards run in threads
    environment |= {
        "FEDGEN_PROFILE": "test",
        "FEDGEN_PROGRESS": str(folder / "my_progress.json"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        f"--port={port}",
        "--ServerApp.port_retries=0",
    ]
    command += [
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={folder}",
        "--expose-app-in-browser",
    ]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with ExitStack() as started:
        if warm:
            environment["JUPYTER_PATH"] = str(folder / "jupyter")
            started.enter_context(_warm_kernels(folder, environment))
        with open(folder / "server.log", "w", encoding="utf-8") as log:
            server = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )
        started.callback(_end, server)  # the server ends its kernels
        address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text(encoding="utf-8")
                time.sleep(0.2)
        yield address


@contextmanager
def _warm_kernels(folder, environment):
    """The process that kernels are forks of, and a kernel's description for JupyterLab in folder/jupyter."""
    with tempfile.TemporaryDirectory() as short:  # the path of a socket has 100 characters at most
        command = [
            sys.executable,
            str(Path(__file__).parent / "warm_kernels.py"),
            str(Path(short) / "kernels"),
        ]
        described = {
            "argv": [*command, "-f", "{connection_file}"],
            "display_name": "Python 3",
            "language": "python",
        }
        kernel = folder / "jupyter" / "kernels" / "python3"
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text(json.dumps(described), encoding="utf-8")
        with open(folder / "kernels.log", "w", encoding="utf-8") as log:
            kernels = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield
        finally:
            _end(kernels)


def _end(process):
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


class Lab:
    """A browser page with a lab open. `errors` and `foreign` collect what must not happen.

    page: a playwright Page; one that shows this JupyterLab already opens the lab there, which saves loading JupyterLab.
    """

    def __init__(self, page, address, width, height=2400, name="03_federated_lora"):
        self.page, self.errors, self.foreign = page, [], []
        page.set_default_timeout(120_000)  # a guard against hanging: a starved machine is slow
        page.set_viewport_size({"width": width, "height": height})
        self._listeners = {
            "console": self._hear,
            "pageerror": lambda error: self.errors.append(str(error)),
            "request": lambda request: self._note(request.url),
            "websocket": lambda socket: self._note(socket.url),
        }
        for event, listener in self._listeners.items():
            page.on(event, listener)
        if page.url.startswith(f"{address}/lab"):
            opened = "async path => { await window.jupyterapp.commands.execute('docmanager:open', {path}); }"
            page.evaluate(
                opened, f"{name}.ipynb"
            )  # without braces the widget itself would come back, which can't be
        else:
            page.goto(f"{address}/lab/tree/{name}.ipynb?reset&token={TOKEN}")
        try:
            page.wait_for_selector(".jp-Notebook .jp-Cell")
            self._wait_for_kernel()
        except BaseException:
            self.close()  # the page's next lab must not meet this one
            raise

    def _wait_for_kernel(self):
        """Until the kernel is idle. One that hangs as it starts is started anew, twice at most: a fork can, for it has
        the locks of its parent's threads, but not the threads."""
        from playwright.sync_api import TimeoutError as TooLong

        kernel = "window.jupyterapp.shell.currentWidget?.sessionContext"
        for seconds in (60, 60, 120):
            try:
                self.page.wait_for_function(
                    f"() => {kernel}?.session?.kernel?.status === 'idle'", timeout=1000 * seconds
                )
                return
            except TooLong:
                if seconds == 120:
                    raise
                self.page.evaluate(f"() => {{ void {kernel}.restartKernel(); }}")

    def close(self):
        """Shut the kernel down, so that its memory goes back, and close the notebook; the page stays."""
        self.page.evaluate("""async () => {
            await window.jupyterapp.serviceManager.sessions.shutdownAll();
            window.jupyterapp.shell.currentWidget?.dispose();
        }""")
        for event, listener in self._listeners.items():
            self.page.remove_listener(event, listener)

    def _hear(self, message):
        """Keep errors of the console; that there is no language server is none, and JupyterLab 4.4 says so."""
        if message.type == "error" and "/lsp/status" not in message.location.get("url", ""):
            self.errors.append(message.text)

    def _note(self, url):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in (
            "127.0.0.1",
            "localhost",
        ):
            self.foreign.append(url)

    def run_cell(self, text):
        """Run the code cell that contains `text` and wait until it is finished. Returns its output."""
        self.page.evaluate(
            """async (text) => {
                const app = window.jupyterapp, notebook = app.shell.currentWidget.content;
                const index = notebook.widgets.findIndex(
                    cell => cell.model.type === 'code' && cell.model.sharedModel.getSource().includes(text));
                notebook.activeCellIndex = index;
                await notebook.scrollToItem(index, 'start');
                await app.commands.execute('notebook:run-cell');
            }""",
            text,
        )
        cell = (
            self.page.locator(".jp-CodeCell")
            .filter(has=self.page.locator(".cm-content", has_text=text))
            .last
        )
        return cell.locator(".jp-Cell-outputWrapper")

    def widen(self, width):
        """Make the page so many pixels wide, and wait until charts have followed."""
        self.page.set_viewport_size({"width": width, "height": self.page.viewport_size["height"]})
        self.page.wait_for_function(CHARTS_FIT, arg=width)

    def theme(self, name):
        """Change JupyterLab's theme."""
        self.page.evaluate(
            "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})",
            name,
        )
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)
        self.page.wait_for_function(CHARTS_FIT, arg=self.page.viewport_size["width"])


# ---- what a learner finds in an output


def knob(output, name):
    """The number box called `name`, and the slider that belongs to it."""
    number = output.get_by_label(name, exact=True)
    slider = number.locator("xpath=ancestor::*[contains(@class, 'widget-vbox')][1]").locator(
        ".noUi-handle"
    )
    return number, slider


def turn_to_both_ends(lab, output, knobs):
    """Every knob by keyboard to its ends and back to where it was. knobs: name -> (lowest, highest), as texts."""
    for name, ends in knobs.items():
        number, slider = knob(output, name)
        first, place = number.input_value(), slider.get_attribute("aria-valuenow")
        for key, end in zip(("Home", "End"), ends, strict=True):
            slider.press(key)
            box = number.element_handle()
            lab.page.wait_for_function(
                "([box, end]) => Number(box.value) === Number(end)", arg=[box, end]
            )
        number.fill(first)
        number.press("Tab")
        # The kernel moves the slider: a key that is pressed before that would be undone by it.
        lab.page.wait_for_function(
            "([handle, place]) => handle.getAttribute('aria-valuenow') === place",
            arg=[slider.element_handle(), place],
        )


def status(output):
    """The status line that is on the page."""
    return output.locator("[role=status]").filter(visible=True).first


def wait_for(output, words, seconds=400):
    """Wait until the status line says something that matches `words`; returns it. No claim about speed."""
    from playwright.sync_api import expect

    expect(status(output)).to_have_text(re.compile(words), timeout=seconds * 1000)
    return status(output).inner_text()


def everything_has_a_name(output):
    """Number boxes, lists and text fields have labels, buttons words, pictures texts."""
    nameless = output.evaluate("""output => {
        const named = {
            'input, select': field => [...(field.labels ?? [])].map(label => label.innerText).join(''),
            'button': button => button.innerText.trim() || button.ariaLabel || '',
            'img': picture => picture.alt,
        };
        const visible = one => one.checkVisibility({visibilityProperty: true}) && one.offsetWidth && one.offsetHeight;
        return Object.entries(named).flatMap(([kind, name]) => [...output.querySelectorAll(kind)].filter(
            one => visible(one) && !name(one).trim())).map(one => one.outerHTML);
    }""")
    assert not nameless, nameless


def nothing_is_cut_off(output):
    """Controls, charts and maps stay within the page, words within their boxes, legends off the plots.

    Plotly lays a legend out anew some time after its chart: up to five seconds are given to it.
    """
    end = time.monotonic() + 5
    while (found := what_is_cut_off(output)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not found, found


def what_is_cut_off(output):
    """What is cut off now, in words, one text each."""
    return output.evaluate("""output => {
        const page = output.getBoundingClientRect(), found = [];
        const shown = selector => [...output.querySelectorAll(selector)].filter(
            one => one.checkVisibility() && !one.closest('.modebar, .fedgen-strip, .fedgen-table'));
        const name = one => [one.tagName, one.className.baseVal ?? one.className,
                             one.labels?.[0]?.innerText ?? one.textContent].join(' ').slice(0, 150);
        for (const one of shown('button, input, select, img, svg[role=img], .fedgen-status, .js-plotly-plot')) {
            const box = one.getBoundingClientRect();
            if (box.left < page.left - 4 || box.right > page.right + 4) found.push('leaves the page: ' + name(one));
        }
        for (const one of shown('button, input'))
            if (one.scrollWidth > one.clientWidth + 1) found.push('words do not fit: ' + name(one));
        for (const chart of shown('.js-plotly-plot')) {
            const plot = chart.querySelector('.nsewdrag')?.getBoundingClientRect();
            const right = chart.getBoundingClientRect().right;
            for (const legend of chart.querySelectorAll('.legend .bg'))
                if (plot && legend.getBoundingClientRect().bottom > plot.top + 2) found.push('legend on the plot');
            for (const words of chart.querySelectorAll('.legendtext'))
                if (words.getBoundingClientRect().right > right) found.push('legend leaves: ' + name(words));
        }
        return found;
    }""")


def good_to_look_at(lab, output, picture):
    """Nothing is cut off when the page becomes narrow and wide again, everything has a name, nothing went wrong."""
    for width in (800, 1200):
        lab.widen(width)
        nothing_is_cut_off(output)
        lab.page.screenshot(path=f"{picture}_{width}.png")
    everything_has_a_name(output)
    assert not lab.errors and not lab.foreign, (lab.errors, lab.foreign)


LOOK = """element => { const look = getComputedStyle(element);
    return [look.outline, look.borderColor, look.backgroundColor, look.boxShadow].join(); }"""


def keyboard_reaches_everything(lab, output):
    """Tab visits every control that is on the page, and each looks different while it has the focus."""
    controls = output.locator("button:not(.modebar button), input, select, .noUi-handle").filter(
        visible=True
    )
    handles = [control for control in controls.element_handles() if control.is_enabled()]
    at_page = lab.page.evaluate_handle(
        "handles => { document.activeElement?.blur(); return handles; }", handles
    )
    before, missed = at_page.evaluate(f"handles => handles.map({LOOK})"), set(range(len(handles)))
    handles[0].focus()
    lab.page.keyboard.press("Tab")
    lab.page.keyboard.press("Shift+Tab")
    for _ in range(len(handles) + 100):  # a chart's own buttons lie between
        at, look = at_page.evaluate(f"""handles => {{
            const at = handles.indexOf(document.activeElement);
            return [at, at < 0 ? null : ({LOOK})(handles[at])];
        }}""")
        if at in missed:
            missed.remove(at)
            assert look != before[at], handles[at].evaluate("one => one.outerHTML")
        if not missed:
            return
        lab.page.keyboard.press("Tab")
    assert not missed, [handles[at].evaluate("one => one.outerHTML") for at in missed]
