"""Compile fedgen_lab/peers/contract.vy to contract.json beside it. Needs Vyper: pip install -e ".[test]".

python data/compile_contract.py
"""

import json
from pathlib import Path

PEERS = Path(__file__).resolve().parents[1] / "fedgen_lab" / "peers"


def build():
    """{"vyper", "abi", "bytecode", "runtime"} of the contract as it stands now; runtime: what a chain keeps of it."""
    import vyper

    source = (PEERS / "contract.vy").read_text(encoding="utf-8")
    made = vyper.compile_code(source, output_formats=["abi", "bytecode", "bytecode_runtime"])
    return {
        "vyper": vyper.__version__,
        "abi": made["abi"],
        "bytecode": made["bytecode"],
        "runtime": made["bytecode_runtime"],
    }


if __name__ == "__main__":
    (PEERS / "contract.json").write_text(json.dumps(build()) + "\n", encoding="utf-8")
