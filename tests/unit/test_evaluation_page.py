"""The page of an evaluation: its numbers, its panels, and text that is not HTML."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from closeness import same

from trl_dpo_ext.report.evaluation_page import write_evaluation_page
from trl_dpo_ext.report.evaluation_panels import evaluation_panels, policy_styles


def entry(folder: Path, name: str, reward: float | None, kl: float, **others: Any) -> dict[str, Any]:
    records = folder / "evaluation.records" / f"{name}.jsonl"
    records.parent.mkdir(exist_ok=True)
    rows = [
        {
            "prompt_id": i,
            "sample": j,
            "prompt": prompt,
            "completion": f" <b>{name}</b> {i}",
            "kl": kl,
            "finished": bool(i),
            "rewards": {} if reward is None else {"sentiment": reward},
        }
        for i, prompt in enumerate(["The <i>film", [{"role": "user", "content": "Say & so"}]])
        for j in range(2)
    ]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: dict[str, Any] = {"path": f"runs/{name}", "records": f"evaluation.records/{name}.jsonl"}
    values = {"kl": kl, "kl_k1": kl + 0.1, "finished_share": 0.9, "mean_length": 12.0, "distinct_words": 0.8, **others}
    if reward is not None:
        values["reward"] = reward
        found["best_of_n"] = [
            {
                "n": n,
                "selected_by": "sentiment",
                "reward": reward + n / 100,
                "reward_se": 0.01,
                "kl": n / 10,
                "kl_bound": n / 9,
            }
            for n in (1, 4)
        ]
    for key, value in values.items():
        found |= {key: value, f"{key}_se": 0.0123}
    return found


def results(folder: Path, reward: bool = True) -> Path:
    rewards = {"dpo<1>": 0.7512, "ppo": 0.6487, "sft": 0.5} if reward else dict.fromkeys(("dpo<1>", "ppo", "sft"))
    others = {"win_over_reference": 0.6789} if reward else {}
    policies = {
        name: entry(folder, name, rewards[name], kl, **others) for name, kl in (("dpo<1>", 1.234), ("ppo", 2.5))
    }
    difference = {"policy": "dpo<1>", "other": "ppo"}
    for key in (
        ("reward", "kl", "finished_share", "mean_length") if reward else ("kl", "finished_share", "mean_length")
    ):
        difference |= {
            key: 0.1025,
            f"{key}_se": 0.01,
            f"{key}_low": 0.0825,
            f"{key}_high": None if key == "kl" else 0.1225,
        }
    difference["kl_low"] = None
    result = {
        "policies": policies,
        "reference": {"name": "sft", **entry(folder, "sft", rewards["sft"], 0.0)},
        "differences": [difference],
        "num_prompts": 2,
        "num_samples": 2,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "max_new_tokens": 40,
        "seed": 0,
        "prompts": "prompts.jsonl",
        "rewards": ["sentiment"] if reward else [],
        "versions": {},
    }
    path = folder / "evaluation.json"
    path.write_text(json.dumps(result))
    return path


def test_the_page_has_the_numbers(tmp_path):
    page, picture = write_evaluation_page(results(tmp_path))
    html = page.read_text()
    assert (page.name, picture.name) == ("evaluation.html", "evaluation.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 30_000
    for text in ("0.7512 <small>± 0.0123", "0.6789", "1.234", "0.1025 <small>0.0825 to 0.1225", "dpo&lt;1&gt; − ppo"):
        assert text in html, text
    for text in ("top-k", "top-p", "2 of prompts.jsonl", "not finished", "Say &amp; so", "The &lt;i&gt;film"):
        assert text in html, text
    assert "<b>" not in html and "<i>" not in html and "<script" not in html
    assert re.findall(r"<h3>(.*?)</h3>", html) == [
        "Reward against KL",
        "Best of N",
        "Wins over the reference",
        "KL from the reference",
        "Length",
        "Finished completions",
    ]
    assert html.count('<td data-label="prompt">') == 2  # the first sample of each prompt
    assert not list(tmp_path.glob(".*"))


def test_without_a_reward(tmp_path):
    page, _ = write_evaluation_page(results(tmp_path, reward=False))
    assert re.findall(r"<h3>(.*?)</h3>", page.read_text()) == [
        "KL from the reference",
        "Length",
        "Finished completions",
    ]


def test_what_is_drawn(tmp_path):
    from matplotlib.figure import Figure

    result = json.loads(results(tmp_path).read_text())
    axes = Figure().add_subplot()
    frontier, best = evaluation_panels(result)[:2]
    frontier.draw(axes)
    estimate, bound, *points = [line.get_xydata().tolist() for line in axes.lines]
    assert np.array(estimate) == same(np.array([[0.1, 0.51], [0.4, 0.54]]))
    assert np.array(bound) == same(np.array([[1 / 9, 0.51], [4 / 9, 0.54]]))
    for point in ([1.234, 0.7512], [2.5, 0.6487], [0.0, 0.5]):
        assert [point] in points
    assert [text.get_text() for text in axes.texts] == ["N = 4"]
    axes = Figure().add_subplot()
    best.draw(axes)
    curves = [
        line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
    ]
    assert [[1, 0.7612], [4, 0.7912]] in curves
    assert len({style["color"] for style in policy_styles(result).values()}) == 3
