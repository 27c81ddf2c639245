"""What `forked`'s server imports."""

# ruff: noqa: E402

from import_costs import after_imports, before_imports


before_imports()

from contextlib import suppress

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


after_imports()
