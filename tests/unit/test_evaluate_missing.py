"""The preference metrics without `evaluate` or scipy."""

from pathlib import Path

import forked
import pytest


@pytest.mark.parametrize(
    "package, call", [("evaluate", "load_metric('win_rate')"), ("scipy", "reward_margin([[1, 0]])")]
)
def test_without_the_extra(package: str, call: str, tmp_path: Path) -> None:
    script = f"""
import sys
for name in list(sys.modules):
    if name.startswith("trl_dpo_ext"):
        del sys.modules[name]  # it is imported without the package, too
    if name.startswith("{package}."):
        sys.modules[name] = None
sys.modules["{package}"] = None
from trl_dpo_ext.evaluation.metric_loading import load_metric
from trl_dpo_ext.evaluation.preference_metrics import preference_accuracy, reward_margin
assert preference_accuracy([[1, 0]])["preference_accuracy"] == 1
{call}
"""
    (tmp_path / "script.py").write_text(script)
    program = forked.start([str(tmp_path / "script.py")], tmp_path / "log")
    assert program.wait(60) == 1
    last = program.output.splitlines()[-1]
    assert last.startswith("ImportError") and 'pip install "trl-dpo-ext[evaluate]"' in last
