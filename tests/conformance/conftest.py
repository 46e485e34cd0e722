"""Where the official SDK is: tests that need it run it in its own interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sdk_python(pytestconfig: pytest.Config) -> str:
    """A Python interpreter that can import yandexcloud.

    IMAGELEDGER_SDK_PYTHON if set; this one if it can; else a venv in pytest's cache, made once.
    """
    named = os.environ.get("IMAGELEDGER_SDK_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("yandexcloud") is not None:
        return sys.executable
    cache = pytestconfig.cache
    if cache is None:
        pytest.skip("no interpreter with yandexcloud, and no cache to make one in")
    return str(_installed(cache.mkdir("yandexcloud")))


def _installed(folder: Path) -> Path:
    python, complete = folder / "venv" / "bin" / "python", folder / "complete"
    if complete.exists():
        return python
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder / "venv")],
        [str(python), "-m", "pip", "install", "--quiet", "yandexcloud"],
    ):
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"cannot install yandexcloud: {made.stderr.strip()[-300:]}")
    complete.touch()
    return python
