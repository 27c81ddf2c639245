"""What `forked`'s server imports."""

# ruff: noqa: E402

from import_costs import after_imports, before_imports


before_imports()

import os
import sys
import tempfile
from contextlib import suppress


# Names of environment variables that are read by imports. A fork, whose environment is another, does not read them
# again (`distributed/test_zero.py`)
READ = set()
getitem = os._Environ.__getitem__


def noted(environ: os._Environ[str], name: str) -> str:
    READ.add(name)
    return getitem(environ, name)


os._Environ.__getitem__ = noted
kept = os.dup(1), os.dup(2)
with tempfile.TemporaryFile("w+") as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    import trl_dpo_ext

    public = [getattr(trl_dpo_ext, name) for name in trl_dpo_ext.__all__]
    sys.stdout.flush()
    file.seek(0)
    PRINTED = file.read()  # `docs/test_pages.py` looks at it. A new interpreter would import for ten seconds

import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import peft.tuners.lora.bnb  # noqa: F401
import sklearn.linear_model  # noqa: F401
import tiny  # noqa: F401
import torch.utils.serialization.config  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import trl_dpo_ext.cli.training  # noqa: F401
import trl_dpo_ext.reward_model.files.score_file  # noqa: F401
import trl_dpo_ext.trainers.dpo_trainer  # noqa: F401
import trl_dpo_ext.trainers.ranking_trainer  # noqa: F401


with suppress(ImportError):
    import deepspeed  # as accelerate does for a trainer

    # It would compile an operator for inference, which no training uses, for a minute of two processors
    deepspeed.ops.__compatible_ops__ = {}

os.dup2(kept[0], 1)
os.dup2(kept[1], 2)
os._Environ.__getitem__ = getitem

after_imports()
