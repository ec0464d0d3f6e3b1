"""What every browser test starts from: one page of one JupyterLab for all labs of a worker, a new kernel for each."""

import os
from pathlib import Path

import pytest
from lab_in_browser import QUIET, Lab, chromium, jupyterlab


@pytest.fixture(scope="session")
def page():
    """A page of a Chromium."""
    path = chromium()
    sync_api = pytest.importorskip("playwright.sync_api")
    sync_api.expect.set_options(timeout=120_000)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser.new_page()
        browser.close()


@pytest.fixture(scope="session")
def address(page, tmp_path_factory):
    with jupyterlab(tmp_path_factory.mktemp("labs"), warm=True) as address:
        yield address


@pytest.fixture(scope="module")
def lab(page, address, request):
    """The lab that the test file's NAME says, on a wide page; all tests of the file share its kernel."""
    lab = Lab(page, address, 1200, name=request.module.NAME)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Where screenshots go: a folder to look at (FEDGEN_SCREENSHOTS), else a temporary one."""
    folder = Path(os.environ.get("FEDGEN_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
