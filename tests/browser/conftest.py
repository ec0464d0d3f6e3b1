"""What every browser test starts from: one Chromium for a file, a JupyterLab for a test, a folder for screenshots."""

import os
from pathlib import Path

import pytest
from lab_in_browser import QUIET, Lab, chromium, jupyterlab


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield made
        made.close()


@pytest.fixture
def address(browser, tmp_path):
    with jupyterlab(tmp_path) as address:
        yield address


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory, request):
    """The lab that the test file's NAME says, on a wide page: one page and one kernel for all tests of the file."""
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    with jupyterlab(tmp_path_factory.mktemp("labs")) as address:
        lab = Lab(browser, address, 1200, name=request.module.NAME)
        yield lab
        lab.page.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Where screenshots go: a folder to look at (FEDGEN_SCREENSHOTS), else a temporary one."""
    folder = Path(os.environ.get("FEDGEN_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
