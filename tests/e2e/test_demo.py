"""The demo works, and a script that shares no code with us comes to the same sum."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


def test_the_demo_agrees_with_itself_and_with_an_independent_recount(tmp_path: Path) -> None:
    models_dir = Path(os.environ.get("STEELYARD_MODELS_DIR", REPOSITORY / ".steelyard" / "models"))
    transcript, data_dir = tmp_path / "transcript.json", tmp_path / "data"
    environment = {**os.environ, "STEELYARD_MODELS_DIR": str(models_dir)}
    flags = ["--data-dir", str(data_dir), "--transcript", str(transcript)]

    demo = _run(["examples/demo.py", *flags], environment)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    model_folder = next(path for path in models_dir.glob("SmolLM2*") if path.is_dir())
    paths = [transcript, model_folder, REPOSITORY / "price_books/demo.yaml", data_dir / "books.db"]
    recount = _run(["tests/e2e/recount.py", *map(str, paths)], environment)

    assert "every number agrees" in demo.stdout
    assert recount.returncode == 0, recount.stdout + recount.stderr
    assert recount.stdout.startswith("recounted 0.000")


def _run(words: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
