"""Test session without network, telemetry or shared caches; one thread; the tiny models saved once."""

# ruff: noqa: E402

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any


# Read when `huggingface_hub`, `datasets` and `transformers` are imported, so they come before every such import.
_THREADS = os.environ.get("TEST_THREADS", "1")  # of torch; more than one in `instruction_sets.py`
_HF_HOME = tempfile.mkdtemp(prefix="trl_dpo_ext_tests_")
os.environ.update(
    {
        "HF_HOME": _HF_HOME,
        "HF_DATASETS_CACHE": f"{_HF_HOME}/datasets",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL's own telemetry honours it
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": _THREADS,
        # The ninja that DeepSpeed installs: its operator is compiled again where another version comes first
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
)
import forked
import pytest
from import_costs import after_imports, before_imports, without_devices


before_imports()
if "datasets" in sys.modules:  # this worker is a fork
    forked.follow_environment()

collect_ignore = ["forked_imports.py"]  # for doctests, which it has not: it is for a process of its own


# The process that hands the tests to workers reads this file, too, and they wait for it: torch is imported where it is
# used.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[Any]) -> None:
    """Called by xdist before it starts the workers. If all tests are run, these are forks."""
    if config.args_source == pytest.Config.ArgsSource.TESTPATHS:
        for spec in specs:
            spec.python = shlex.join([sys.executable, forked.WORKER, forked.server_address()])


def pytest_unconfigure() -> None:
    shutil.rmtree(_HF_HOME, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _threads_and_frozen_imports() -> None:
    import torch

    torch.set_num_threads(int(_THREADS))
    without_devices()
    from datasets import arrow_dataset, fingerprint

    # No test but `test_column_types.py` has a use for a hash of rows and functions, which takes longer than they do
    arrow_dataset.generate_fingerprint = lambda dataset: fingerprint.generate_random_fingerprint()
    arrow_dataset.update_fingerprint = lambda *hashed: fingerprint.generate_random_fingerprint()
    after_imports()  # of this file's tests, and of what the tests before it imported


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """A test writes to `tmp_path` only: no file is new in the folder that the tests are started in."""
    before = set(Path().iterdir())
    yield
    left = {path.name for path in set(Path().iterdir()) - before if path.name != ".pytest_cache"}
    assert not left, f"tests wrote {sorted(left)} to {Path().absolute()}"


@pytest.fixture(autouse=True)
def _seed() -> None:
    from transformers import set_seed

    set_seed(0)


@pytest.fixture
def float64(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test computes in float64 (`closeness.in_float64`), unless it is marked `float32`."""
    from closeness import in_float64

    with nullcontext() if request.node.get_closest_marker("float32") else in_float64():
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`tiny_folder("llama")` is the folder of that model of `tiny.MODELS` with its tokenizer, saved on first use."""
    from tiny import MODELS, save_tiny, tiny_processing_class

    base = tmp_path_factory.mktemp("tiny")

    @cache
    def folder(name: str) -> str:
        return save_tiny(MODELS[name](), tiny_processing_class(name), base / name)

    return folder


@pytest.fixture(scope="session")
def llama_folder(tiny_folder: Callable[[str], str]) -> str:
    return tiny_folder("llama")


@pytest.fixture(scope="session")
def gpt2_folder(tiny_folder: Callable[[str], str]) -> str:
    return tiny_folder("gpt2")


@pytest.fixture(scope="session")
def bos_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Llama beside a tokenizer that puts a BOS token before every text."""
    from tiny import MODELS, save_tiny, tiny_tokenizer

    return save_tiny(MODELS["llama"](), tiny_tokenizer(bos=True), Path(tmp_path_factory.mktemp("bos")))
