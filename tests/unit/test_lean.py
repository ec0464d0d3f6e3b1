"""Libraries that no lab needs stay out of memory."""

import subprocess
import sys

import pytest
import transformers

DRAW = """
from fedgen_lab.lora.pipeline import draw, load_pipeline
print(tuple(draw(load_pipeline(), ["a red star"], [0], steps=1).shape))
"""
SCORE = """
import torch
from fedgen_lab.scores import fid, kid, precision_recall
assert not {"torchmetrics", "diffusers", "transformers"} & sys.modules.keys()  # before a score needs one
pictures = torch.rand(140, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
print(fid(pictures, pictures) < 1e-3, kid(pictures, pictures) < 1e-3, precision_recall(pictures, pictures))
"""
LOADED = """
import sys
print(sorted({name.partition(".")[0] for name in sys.modules} & {"scipy", "matplotlib", "sklearn", "pyarrow"} - BEFORE))
"""


@pytest.mark.parametrize(
    ("work", "result"), [(DRAW, "(1, 3, 32, 32)"), (SCORE, "True True (1.0, 1.0)")]
)
def test_pictures_are_drawn_and_scored_without_libraries_for_other_uses(work, result):
    if transformers.__version__ < "5":
        pytest.skip("transformers 4 loads scikit-learn itself; Binder gets a newer one")
    # pandas loads pyarrow where that is installed.
    before = "import pandas, sys\nBEFORE = {name.partition('.')[0] for name in sys.modules}\n"
    done = subprocess.run(
        [sys.executable, "-c", before + work + LOADED],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout.splitlines()[-2:] == [result, "[]"]


def test_pandas_comes_without_pyarrow_which_can_still_be_used():
    work = "from fedgen_lab.lean import import_pandas\nimport_pandas()\nimport pandas, sys\n"
    later = "first = [name for name in sys.modules if name.startswith('pyarrow')]\nimport pyarrow\n"
    table = "print(first, pyarrow.Table.from_pandas(pandas.DataFrame({'a': ['x', None]})).to_pandas()['a'].tolist())"
    done = subprocess.run(
        [sys.executable, "-c", work + later + table],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout.splitlines()[-1] in ("[] ['x', None]", "[] ['x', nan]")
