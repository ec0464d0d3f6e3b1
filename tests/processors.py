"""The tests as other processors would run them: four runs, all or one by name; what failed is named at the end.

    python tests/processors.py              # as `make test-processors`
    python tests/processors.py baseline     # as `make test-processors-baseline`

A processor decides in which order sums are added up, and so the last bits of every result. torch, oneDNN, MKL and
numpy's OpenBLAS each choose for themselves; environment variables let a newer x86-64 processor choose as an older one
must.
"""

import argparse
import os
import subprocess
import sys

UNIT = ("-o", "addopts=-ra", "-p", "no:nbval", "tests/unit")
LABS = ("--nbval-lax", "--nbval-current-env", "labs")
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
BASELINE = {  # what every x86-64 processor can, or the next there is
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Nehalem",
}
RUNS = {  # name -> (threads, environment, what to run)
    "one-thread": (1, {}, [UNIT]),
    "two-threads": (2, {}, [UNIT]),
    "avx2": (1, AVX2, [UNIT, LABS]),
    "baseline": (1, BASELINE, [UNIT]),
}
ASK = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"


def failed(name, workers):
    """Run the tests of one run; whether any failed, or torch computes otherwise than asked."""
    threads, variables, parts = RUNS[name]
    environment = {
        **os.environ,
        **variables,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    command = [sys.executable, "-c", ASK]
    reported = subprocess.run(
        command, env=environment, capture_output=True, check=True, encoding="utf-8"
    )
    capability, used = reported.stdout.split()
    print(
        f"--- {name}: torch computes with {capability} on {used} threads {variables or ''}",
        flush=True,
    )
    asked = variables.get("ATEN_CPU_CAPABILITY", capability)
    if (capability.lower(), int(used)) != (asked.lower(), threads):
        print(
            f"{name} asks for {asked} on {threads} threads: this processor or this build of torch can't show it."
        )
        return True
    spread = ("-n", str(max(1, workers // threads)), "--dist", "loadfile")
    codes = [
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *spread, *part], env=environment
        ).returncode
        for part in parts
    ]
    return any(codes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="run", help=", ".join(RUNS))
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="test workers at once, on one thread each",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.runs) - set(RUNS):
        parser.error(f"there is no run {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    red = [name for name in arguments.runs or RUNS if failed(name, arguments.workers)]
    sys.exit(f"failed: {', '.join(red)}" if red else 0)
