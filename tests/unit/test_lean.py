"""Libraries that no lab needs stay out of memory."""

import subprocess
import sys

DRAW = """
import sys
from fedgen_lab.lora.pipeline import draw, load_pipeline
pictures = draw(load_pipeline(), ["a red star"], [0], steps=1)
print(tuple(pictures.shape), [name for name in sys.modules if name.startswith("scipy")])
"""


def test_a_picture_is_drawn_without_scipy():
    done = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines()[-1] == "(1, 3, 32, 32) []"
