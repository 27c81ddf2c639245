"""The preference metrics without `evaluate` or scipy."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "package, call", [("evaluate", "load_metric('win_rate')"), ("scipy", "reward_margin([[1, 0]])")]
)
def test_without_the_extra(package, call):
    script = f"""
import sys
sys.modules[{package!r}] = None
from trl_dpo_ext.evaluation.metric_loading import load_metric
from trl_dpo_ext.evaluation.preference_metrics import preference_accuracy, reward_margin
assert preference_accuracy([[1, 0]])["preference_accuracy"] == 1
{call}
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1].startswith("ImportError")
    assert 'pip install "trl-dpo-ext[evaluate]"' in run.stderr.splitlines()[-1]
