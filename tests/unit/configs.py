"""A config of the tests, and one that is refused."""

import pytest

from trl_dpo_ext import DPOPaperConfig


# What every config of these tests has, and no preset sets
MACHINE = {"output_dir": "out", "use_cpu": True, "report_to": "none"}


def config(**options) -> DPOPaperConfig:
    return DPOPaperConfig(**MACHINE | options)


def refused(match: str):
    return pytest.raises(ValueError, match=match)
