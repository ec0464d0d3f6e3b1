"""Lab 03's dashboard in Chromium: a live run reaches its end, and a JupyterLab that can't draw plotly shows pictures.

Run by the Python of the environment that is looked at (base_lock.py), on lab_in_browser.py of the browser tests.
"""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
from lab_in_browser import QUIET, Lab, chromium, jupyterlab, wait_for  # noqa: E402

LAB = "03_federated_lora"
CELL = "lora_dashboard()"
STILL = ".jp-RenderedHTML img[src^='data:image/png']"
PLOTLY = ".js-plotly-plot .main-svg"


def main():
    """Both claims, one JupyterLab each; FOLDER as argument keeps screenshots."""
    pictures = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    names = ("jupyterlab", "ipykernel", "ipywidgets", "ipython", "plotly")
    print(", ".join(f"{name} {version(name)}" for name in names), flush=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(QUIET))
        for claim in (a_live_run_reaches_its_end, without_plotly_the_chart_is_a_picture):
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                claim(browser, Path(folder), pictures)
            print(
                f"{claim.__name__}: yes, after {time.monotonic() - began:.0f} seconds", flush=True
            )
        browser.close()


def a_live_run_reaches_its_end(browser, folder, pictures):
    with jupyterlab(folder) as address:
        lab, output = opened(browser, address)
        output.locator(PLOTLY).first.wait_for(timeout=120_000)
        output.get_by_role("button", name="Start", exact=True).click()
        wait_for(output, r"^Done: 2 of 2 rounds", seconds=900)
        expect(
            output.locator(".fedgen-note").filter(has_text="Live, on this machine")
        ).to_be_visible()
        # When the charts have rested, still pictures go into the notebook, and JupyterLab goes on showing the figures.
        lab.page.wait_for_function(f"() => ({STILLS_KEPT})() === 2", timeout=120_000)
        expect(output.locator(PLOTLY).first).to_be_visible()
        assert output.locator(STILL).count() == 0
        finish(lab, pictures, "with_plotly")


def without_plotly_the_chart_is_a_picture(browser, folder, pictures):
    settings = folder / "config" / "labconfig"
    settings.mkdir(parents=True)
    # By the name that plotly's extension gives itself in the page; `jupyterlab-plotly`, its package, is ignored here.
    off = {"disabledExtensions": {"@jupyterlab/plotly-extension": True}}
    (settings / "page_config.json").write_text(json.dumps(off), encoding="utf-8")
    with jupyterlab(folder) as address:
        lab, output = opened(browser, address)
        picture = output.locator(STILL).first
        picture.wait_for(timeout=120_000)
        assert "Recorded" in picture.get_attribute("alt")
        assert output.locator(PLOTLY).count() == 0
        finish(lab, pictures, "without_plotly")


# How many outputs of the notebook hold a figure together with its still picture.
STILLS_KEPT = """() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
    .flatMap(cell => cell.type === 'code' ? cell.outputs.toJSON() : [])
    .filter(output => output.data?.['application/vnd.plotly.v1+json'] &&
                      String(output.data['text/html'] ?? '').includes('data:image/png')).length"""


def opened(browser, address):
    lab = Lab(browser.new_page(), address, 1200, name=LAB)
    output = lab.run_cell(CELL)
    wait_for(output, "^Ready", seconds=240)
    return lab, output


def finish(lab, pictures, name):
    """Screenshots in both themes, then no error and no foreign address."""
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        lab.page.screenshot(path=pictures / f"{name}.png")
        lab.theme("JupyterLab Dark")
        lab.page.screenshot(path=pictures / f"{name}_dark.png")
        lab.theme("JupyterLab Light")
    assert not lab.errors and not lab.foreign, (lab.errors, lab.foreign)
    lab.close()


if __name__ == "__main__":
    main()
