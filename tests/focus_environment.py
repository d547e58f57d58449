"""An environment of their own for the FOCUS validators: they need Python 3.12 and libraries that
are older than ours. Made once, under `.steelyard/`, by the first test that asks."""

import fcntl
import glob
import shutil
import subprocess
from pathlib import Path
from typing import Final

STATE: Final = Path(__file__).parents[1] / ".steelyard"
ENVIRONMENT: Final = STATE / "focus-validator"
# On Python 3.11 pip quietly takes version 1.0.0 of the first; NumPy 1.26 bounds the last.
PACKAGES: Final = ("focus-validator==2.2.1", "focus-data-toolkit==0.14.1", "pyarrow==23.0.1")


def find_environment() -> Path | None:
    """The folder of its programs; None where there is no Python that the validator runs on."""
    STATE.mkdir(exist_ok=True)
    with (STATE / "focus-validator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = ENVIRONMENT / ".ready"
        if not ready.exists() or ready.read_text() != "\n".join(PACKAGES):
            python = _find_python()
            if python is None:
                return None
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)
            subprocess.run([python, "-m", "venv", ENVIRONMENT], check=True)
            pip = [ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", *PACKAGES]
            subprocess.run(pip, check=True)
            ready.write_text("\n".join(PACKAGES))
    return ENVIRONMENT / "bin"


def _find_python() -> str | None:
    """NumPy 1.26 has no wheels for anything but 3.12."""
    installed = glob.glob(str(Path.home() / ".pyenv" / "versions" / "3.12*" / "bin" / "python"))
    for candidate in ("python3.12", *sorted(installed)):
        found = shutil.which(candidate)
        # A shim may be there for a Python that is not.
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    return None
