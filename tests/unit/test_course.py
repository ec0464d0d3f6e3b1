"""The course knows its labs, where they can be launched, and whether a machine is ready."""

import subprocess
import sys
from pathlib import Path

import pytest
from measure import header, launch_links

from fedgen_lab import course

ROOT = Path(__file__).resolve().parents[2]


def test_a_launch_link_leads_to_the_lab_it_stands_in_and_its_badge_is_a_local_image():
    links = launch_links("03")
    assert (
        "mybinder.org/v2/gh/fedgen-lab/fedgen-lab/HEAD?labpath=labs%2F03_federated_lora.ipynb"
        in links
    )
    assert (
        "colab.research.google.com/github/fedgen-lab/fedgen-lab/blob/main/labs/03_federated_lora.ipynb"
        in links
    )
    for host in ("binder", "colab"):
        assert (ROOT / "labs" / "images" / f"launch-{host}.svg").exists()
        assert f"(images/launch-{host}.svg)" in links


def test_the_repository_address_is_written_in_one_module_only():
    paths = (ROOT / "fedgen_lab").rglob("*.py")
    holders = [path.name for path in paths if course.REPOSITORY in path.read_text("utf-8")]
    assert holders == ["course.py"]


def test_the_header_says_what_was_measured():
    record = {"seconds": 61.6, "cpu_seconds": 60.1, "peak_megabytes": 702}
    assert header("01", {"01_federated_averaging": record}) == (
        "**Time:** about 50 minutes; computing is 60 seconds on one core. **Memory:** 702 MB at the peak."
    )


def test_a_lab_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(ValueError, match="No lab is called '99'. There are: 00_start_here"):
        course.lab("99")


def test_the_course_map_has_a_row_for_every_lab_and_stands_in_the_readme():
    assert course.course_map().data.count("\n") == len(course.LABS) + 1
    in_readme = course.course_map().data.replace("](", "](labs/")
    assert in_readme in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_self_check_asks_what_a_lab_needs_and_says_what_to_do_where_something_is_missing(
    monkeypatch,
):
    checked = course.self_check().set_index("what")
    assert {"Python", "torch", "flwr", "free memory", "threads of torch", "data: tiny-sd"} <= set(
        checked.index
    )
    assert (checked.loc[checked.fine == "no", "what to do"] != "").all()
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    assert "3.11" in course.self_check().set_index("what").loc["Python", "what to do"]


def test_the_self_check_names_a_library_outside_its_declared_range(monkeypatch):
    declared = [
        "torch>=2.8,<3",
        "ipykernel>=6.29,!=7.0.*,<8",
        "deap>=1.4,<2",
        "tqdm>=4",
        'absent>=1; extra == "test"',
    ]
    found = {"torch": "2.13.0+cpu", "ipykernel": "7.0.1", "deap": "1.3", "tqdm": "4.66"}
    monkeypatch.setattr(course, "requires", lambda name: declared)
    monkeypatch.setattr(course, "version", found.__getitem__)
    checked = course.self_check().set_index("what")
    assert (
        checked.loc["torch", "fine"] == "yes"
        and checked.loc["other libraries", "found"] == "1 as needed"
    )
    for name in ("ipykernel", "deap"):
        assert tuple(checked.loc[name, ["found", "fine"]]) == (found[name], "no")
        assert checked.loc[name, "what to do"].startswith(f"pip install '{name}")
    assert not {"tqdm", "absent"} & set(checked.index)


def test_every_declared_dependency_is_looked_at_and_no_extra():
    names = {requirement.name for requirement in course.declared_requirements()}
    assert {"torch", "diffusers", "numpy", "web3", "jupyterlab"} <= names and "pytest" not in names


def test_the_self_check_says_no_where_the_tokenizer_does_not_load(monkeypatch):
    import transformers

    assert course.self_check().set_index("what").loc["tokenizer of tiny-sd", "fine"] == "yes"

    def from_pretrained(*_, **__):
        raise TypeError("expected str, bytes or os.PathLike object, not NoneType")

    monkeypatch.setattr(transformers.CLIPTokenizer, "from_pretrained", from_pretrained)
    row = course.self_check().set_index("what").loc["tokenizer of tiny-sd"]
    assert row["fine"] == "no" and "not NoneType" in row["found"] and row["what to do"]


def test_the_self_check_says_no_where_a_thread_cant_draw(monkeypatch):
    import threading

    import IPython

    monkeypatch.delenv("FEDGEN_RUN", raising=False)
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    main_thread, drawn_in = threading.current_thread(), []

    class Handle:
        def update(self, bundle, raw):
            drawn_in.append(threading.current_thread())
            if broken:
                raise LookupError("parent_header")

    monkeypatch.setattr(IPython.display, "display", lambda *shown, **how: Handle())
    broken = False
    assert course.self_check().set_index("what").loc["live runs", "fine"] == "yes"
    assert drawn_in and main_thread not in drawn_in
    broken = True
    row = course.self_check().set_index("what").loc["live runs"]
    assert (
        row["fine"] == "no" and "parent_header" in row["found"] and "ipykernel" in row["what to do"]
    )


def test_importing_the_package_and_the_course_brings_no_heavy_library_along():
    heavy = {"torch", "pandas", "diffusers", "plotly", "flwr", "matplotlib", "IPython"}
    code = f"import sys, fedgen_lab.course; print(*({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    assert not subprocess.run(
        command, capture_output=True, check=True, encoding="utf-8"
    ).stdout.strip()
