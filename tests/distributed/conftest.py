"""What the files of distributed tests share, also where they are tested by several workers."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from tiny import MODELS, save_tiny, tiny_processing_class


# A comparison in `launched` that fails shows the values, as it does in a test
pytest.register_assert_rewrite("launched")

from launched import Launched, run_cases  # noqa: E402


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def llama_folder(shared_folder: Path) -> str:
    """One folder for all, since runs write down the name of their model."""
    folder = shared_folder / "llama"
    with FileLock(shared_folder / "llama.lock"):
        if not folder.exists():
            save_tiny(MODELS["llama"](), tiny_processing_class("llama"), folder)
    return str(folder)


@pytest.fixture(scope="session")
def on_one_process(llama_folder: str, shared_folder: Path) -> Callable[[list[str]], Launched]:
    """Runs cases on one process. Each is run once, whichever files ask for it."""

    def run(cases: list[str]) -> Launched:
        with FileLock(shared_folder / "one_process.lock"):
            return run_cases(1, llama_folder, shared_folder / "one_process", cases)

    return run
