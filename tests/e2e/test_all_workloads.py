"""Every workload on one bill. It prepares nine models, which takes a minute or two: opt in with
STEELYARD_TEST_ALL_WORKLOADS=1, or run `make example-all`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
OPTED_IN = "STEELYARD_TEST_ALL_WORKLOADS"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(OPTED_IN not in os.environ, reason=f"takes minutes; set {OPTED_IN}=1"),
]


def test_the_statement_of_every_workload_is_what_was_deducted() -> None:
    models_dir = os.environ.get("STEELYARD_MODELS_DIR", str(REPOSITORY / ".steelyard" / "models"))

    example = subprocess.run(
        [sys.executable, "examples/all_workloads.py"],
        cwd=REPOSITORY,
        env={**os.environ, "STEELYARD_MODELS_DIR": models_dir},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )

    assert example.returncode == 0, example.stdout + example.stderr
    assert "the statement is what was deducted" in example.stdout
