"""What `forked`'s server imports."""

# ruff: noqa: E402

import gc
import importlib.metadata
from functools import cache


importlib.metadata.metadata = cache(importlib.metadata.metadata)  # as in `conftest.py`

import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import sklearn.linear_model  # noqa: F401
import tiny  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import trl_dpo_ext.cli.training  # noqa: F401
import trl_dpo_ext.reward_model.files.score_file  # noqa: F401
import trl_dpo_ext.trainers.dpo_trainer  # noqa: F401
import trl_dpo_ext.trainers.ranking_trainer  # noqa: F401


gc.collect()
gc.freeze()
