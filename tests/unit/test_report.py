"""The report on a run: what it reads, which panels it draws, and the page and command around them."""

import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from trl_dpo_ext import run_files, run_log
from trl_dpo_ext.cli import main
from trl_dpo_ext.report.drawing import draw_curves, window_means
from trl_dpo_ext.report.page import write_report
from trl_dpo_ext.report.panels import panels_of, quantile
from trl_dpo_ext.report.run_data import Curve, Distribution, RunData, Sample, find_runs, read_run
from trl_dpo_ext.report.summary import SummaryRow, facts, summary_rows
from trl_dpo_ext.trainers.logs.distributions import Distributions


TRAINING = [
    {"step": 10, "epoch": 0.5, "loss": 0.69, "rewards/accuracies": 0.5, "num_tokens": 900, "learning_rate": 1e-6},
    {"step": 20, "epoch": 1.0, "loss": 0.55, "rewards/accuracies": 0.75, "num_tokens": 1800, "learning_rate": 1e-6},
]
EVALUATION = {"step": 20, "epoch": 1.0, "eval_loss": 0.6, "eval_rewards/accuracies": 0.625, "eval_runtime": 2.0}
TOTALS = {"step": 20, "epoch": 1.0, "train_runtime": 3725.4, "train_loss": 0.62}


def write_lines(path: Path, lines: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def a_run(folder: Path, lines: list) -> RunData:
    write_lines(folder / "run_log" / "metrics.jsonl", lines)
    return read_run(folder)


def histogram(name: str, step: int = 20, **columns) -> dict:
    return {"step": step, "name": name, "edges": [-1.0, 0.0, 1.0], "counts": [1, 3]} | columns


# --- Reading ---------------------------------------------------------------------------------------------------------


def test_curves_of_training_and_evaluation(tmp_path):
    run = a_run(tmp_path, [*TRAINING, EVALUATION, TOTALS])
    assert run.source == tmp_path / "run_log" / "metrics.jsonl"
    assert run.curves("loss") == {
        "training": Curve([10, 20], [0.69, 0.55]),
        "evaluation": Curve([20], [0.6]),
    }
    assert run.training["num_tokens"] == Curve([10, 20], [900, 1800])
    assert set(run.evaluation) == {"evaluation"}
    assert set(run.evaluation["evaluation"]) == {"loss", "rewards/accuracies"}
    assert run.seconds == 3725.4
    assert run.notes == []


def test_evaluation_sets_are_kept_apart(tmp_path):
    run = a_run(
        tmp_path,
        [
            *TRAINING,
            {"step": 20, "eval_hh_rewards/accuracies": 0.7, "eval_hh_loss": 0.5, "eval_hh_aux_loss": 0.01},
            {"step": 20, "eval_training_rewards/accuracies": 0.6, "eval_training_runtime": 1.0},
            {"step": 20, "held_out_loss": 0.4, "held_out_runtime": 1.0},
        ],
    )
    assert run.curves("rewards/accuracies") == {
        "training": Curve([10, 20], [0.5, 0.75]),
        "hh": Curve([20], [0.7]),
        "eval_training": Curve([20], [0.6]),
    }
    assert set(run.curves("loss")) == {"training", "hh", "held_out"}
    assert run.evaluation["hh"]["aux_loss"] == Curve([20], [0.01])


def test_unknown_metrics_are_ignored(tmp_path):
    custom = {"eval_my_loss": 3.0, "eval_rewards/of_mine": 1.0, "my_entropy": 2.0, "note": "text"}
    run = a_run(tmp_path, [TRAINING[0] | {"my_loss": 1.0, "rewards/mine": 2.0, "loss": "high"}, EVALUATION | custom])
    assert set(run.training) == {"epoch", "rewards/accuracies", "num_tokens", "learning_rate"}
    assert set(run.evaluation) == {"evaluation"}
    assert set(run.evaluation["evaluation"]) == {"loss", "rewards/accuracies"}


def test_values_that_are_not_finite_are_noted(tmp_path):
    lines = [{"step": 1, "loss": 0.7, "grad_norm": None}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}]
    run = a_run(tmp_path, lines)
    assert run.curves("loss")["training"].finite() == [(1, 0.7)]
    assert run.curves("grad_norm") == {}
    assert run.notes == [
        "`loss` is not finite at 2 updates (crosses), the first 2.",
        "`grad_norm` is not finite at 1 updates (crosses), the first 1.",
    ]


def test_damaged_lines_are_reported_with_their_number(tmp_path):
    path = tmp_path / "run_log" / "metrics.jsonl"
    write_lines(path, [TRAINING[0], [1, 2], {"loss": 1.0}, TRAINING[1]])
    path.write_text(path.read_text() + '\n{"step": 30, "lo')
    run = read_run(tmp_path)
    assert run.training["loss"].steps == [10, 20]
    assert run.notes == [
        "metrics.jsonl, line 2 is not a JSON object: left out.",
        "metrics.jsonl, line 3 has no whole number `step`: left out.",
        "metrics.jsonl, line 6 is incomplete (was the run killed while writing?): left out.",
    ]


def test_of_what_was_logged_twice_the_last_counts(tmp_path):
    run = a_run(tmp_path, [{"step": step, "loss": loss} for step, loss in ((1, 0.7), (2, 0.6), (3, 0.5), (2, 0.65))])
    assert run.training["loss"] == Curve([1, 2, 3], [0.7, 0.65, 0.5])
    assert run.notes == [
        "metrics.jsonl, line 4 goes back from update 3 to 2 (a resumed run, or another in the same folder): where an "
        "update was logged twice, the last values are drawn."
    ]


@pytest.mark.parametrize("place", [".", "checkpoint-100"])
def test_a_run_of_trl_is_read_from_its_trainer_state(tmp_path, place):
    for folder, loss in (("checkpoint-20", 9.0), (place, 0.5)):  # 100 is later than 20
        path = tmp_path / folder / "trainer_state.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"log_history": [{"step": 1, "loss": loss}, EVALUATION]}))
    (tmp_path / "run_log").mkdir()
    (tmp_path / "run_log" / "metrics.jsonl").touch()
    run = read_run(tmp_path)
    assert run.source == tmp_path / place / "trainer_state.json"
    assert run.training["loss"] == Curve([1], [0.5])
    assert run.evaluation["evaluation"]["loss"] == Curve([20], [0.6])


def test_settings_are_read_from_the_folder_or_its_last_checkpoint(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "trl_dpo_ext.json").write_text('{"beta": 0.3}')
    assert a_run(tmp_path, TRAINING).settings == {"beta": 0.3}
    (tmp_path / "trl_dpo_ext.json").write_text('{"beta": 0.1}')
    assert read_run(tmp_path).settings == {"beta": 0.1}
    (tmp_path / "trl_dpo_ext.json").write_text('{"beta"')
    run = read_run(tmp_path)
    assert run.settings == {"beta": 0.3}
    assert run.notes[0].startswith("trl_dpo_ext.json is not JSON (")


def test_distributions(tmp_path):
    lines = [
        histogram("eval_rewards/margins", step=40),
        histogram("eval_rewards/margins"),
        histogram("eval_hh_rewards/calibration", confidence=[None, 0.8], accuracy=[None, 0.75]),
        histogram("eval_rewards/other"),
        histogram("eval_rewards/chosen", counts=[1]),
        histogram("eval_rewards/chosen", edges=[0, 1, "x"]),
        histogram("eval_rewards/chosen", accuracy=[1.0]),
    ]
    write_lines(tmp_path / "run_log" / "distributions.jsonl", lines)
    run = a_run(tmp_path, TRAINING)
    edges, counts = [-1.0, 0.0, 1.0], [1, 3]
    assert run.distributions == {
        "evaluation": {"rewards/margins": [Distribution(20, edges, counts), Distribution(40, edges, counts)]},
        "hh": {"rewards/calibration": [Distribution(20, edges, counts, [None, 0.8], [None, 0.75])]},
    }
    assert run.notes == [
        f"distributions.jsonl, line {number} is not a histogram with n counts and n + 1 edges: left out."
        for number in (5, 6, 7)
    ]


def test_samples_of_the_last_evaluation(tmp_path):
    sample = {"name": "eval", "prompt": "p", "policy": "a", "policy_reward": 0.3, "reference": "b"}
    lines = [
        {"step": 10} | sample,
        {"step": 20} | sample | {"reference_reward": -0.1},
        {"step": 20, "name": "eval_hh", "prompt": "q", "policy": "c"},
        {"step": 20, "name": "eval", "prompt": ["p"], "policy": "a", "policy_reward": "high"},
    ]
    write_lines(tmp_path / "run_log" / "samples.jsonl", lines)
    run = a_run(tmp_path, TRAINING)
    assert run.samples == [
        Sample(20, "evaluation", "p", "a", 0.3, "b", -0.1),
        Sample(20, "hh", "q", "c", None, None, None),
    ]
    assert run.notes == ["samples.jsonl, line 4 is not a sample, see its `prompt`, `policy_reward`: left out."]


def test_reads_what_the_trainers_write(tmp_path):
    log = run_log.RunLog(tmp_path)
    log.append(run_files.METRICS, TRAINING)
    log.append(run_files.DISTRIBUTIONS, Distributions("eval", {"rewards/margins": np.arange(100.0)}, None).rows(20))
    run = read_run(tmp_path)
    [margins] = run.distributions["evaluation"]["rewards/margins"]
    assert quantile(margins, 0.5) == pytest.approx(49.5)
    assert run.notes == []


# --- Numbers ---------------------------------------------------------------------------------------------------------


def test_windows_of_a_long_curve():
    curve = Curve(list(range(1, 6)), [1.0, 3.0, math.nan, 5.0, 2.0])
    assert window_means(curve, most=2) == [(1.5, 2.0, 1.0, 3.0), (4.5, 3.5, 2.0, 5.0)]
    assert window_means(curve, most=4) == [
        (1.0, 1.0, 1.0, 1.0),
        (2.0, 3.0, 3.0, 3.0),
        (4.0, 5.0, 5.0, 5.0),
        (5, 2, 2, 2),
    ]


@pytest.mark.parametrize(("share", "value"), [(0, 0.0), (0.25, 1.0), (0.5, 3.0), (0.75, 3.5), (1, 4.0)])
def test_quantiles_of_a_histogram(share, value):
    # 1/4 of the examples in [0, 1], none in [1, 2], 1/4 in [2, 3] and 1/2 in [3, 4]
    assert quantile(Distribution(1, [0.0, 1.0, 2.0, 3.0, 4.0], [2, 0, 2, 4]), share) == value


def test_summary_and_facts(tmp_path):
    settings = {"trainer": "DPOPaperTrainer", "beta": 0.1, "reference": {"kind": "copy in memory", "hash": "1"}}
    (tmp_path / "trl_dpo_ext.json").write_text(json.dumps(settings))
    run = a_run(tmp_path, [*TRAINING, EVALUATION, TOTALS])
    assert summary_rows(run) == [
        SummaryRow("loss", "training", 0.69, 0.55, (0.55, 20)),
        SummaryRow("loss", "evaluation", 0.6, 0.6, (0.6, 20)),
        SummaryRow("rewards/accuracies", "training", 0.5, 0.75, (0.75, 20)),
        SummaryRow("rewards/accuracies", "evaluation", 0.625, 0.625, (0.625, 20)),
    ]
    assert facts(run) == {
        "trainer": "DPOPaperTrainer",
        "beta": "0.1",
        "reference": "copy in memory",
        "updates": "20",
        "epochs": "1",
        "tokens": "1,800",
        "time": "1:02:05",
    }


# --- Panels ----------------------------------------------------------------------------------------------------------


def titles(folder: Path, line: dict, distributions: list[dict] = ()) -> list[str]:
    write_lines(folder / "run_log" / "distributions.jsonl", list(distributions))
    return [panel.title for panel in panels_of(a_run(folder, [{"step": 20} | line]))]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (["loss"], ["Loss"]),
        (["rewards/accuracies", "rewards/accuracies_from_length"], ["Pairs in the right order"]),
        (["rewards/accuracies_from_length"], []),
        (["logps/chosen"], ["Log-probability of completions"]),
        (["logps/chosen", "logps/chosen_drift"], ["Drift from the reference"]),
        (["kl_per_token", "entropy"], ["KL from the reference", "Entropy"]),
        (["logits/rejected", "entropy", "logits/chosen", "grad_norm"], ["Entropy", "Mean logits", "Gradient norm"]),
        (["rewards/margins_neighbors", "rewards/margins"], ["Reward margin"]),
        (["rewards/margins_neighbors"], []),
        (["rewards/gradient_weight_near_0", "rewards/gradient_weight"], ["Weight of a pair in the gradient"]),
        (
            ["rewards/rank_1", "rewards/rank_2", "rewards/kendall_tau"],
            ["Rank correlation", "Reward by rank, training"],
        ),
        (["eval_rewards/rank_1", "rewards/rank_1"], ["Reward by rank, evaluation"]),
        (["learning_rate", "grad_norm", "num_tokens"], ["Gradient norm", "Learning rate"]),
        (
            ["loss", "reward", "objective", "kl_sequence", "beta", "completions/finished", "completions/mean_length"],
            [
                "Reward of samples",
                "KL of samples",
                "Weight of the KL term",
                "Finished completions",
                "Length of completions",
                "Reward against KL",
            ],
        ),
        (["value_loss", "reward", "entropy"], ["Reward of samples", "Value loss", "Entropy"]),
    ],
)
def test_panels_are_those_of_the_metrics(tmp_path, metrics, expected):
    assert titles(tmp_path, dict.fromkeys(metrics, 0.5)) == expected


def test_the_path_of_reward_against_kl(tmp_path):
    """The mean of each window of updates that have both."""
    rows = [{"step": i, "kl_sequence": i / 10} | ({"reward": float(i)} if i > 1 else {}) for i in range(1, 42)]
    [panel] = [panel for panel in panels_of(a_run(tmp_path, rows)) if panel.title == "Reward against KL"]
    axes = Figure().subplots()
    panel.draw(axes)
    path, last = axes.lines
    assert path.get_xdata() == pytest.approx([(i + 0.5) / 10 for i in range(2, 42, 2)])
    assert path.get_ydata() == pytest.approx([i + 0.5 for i in range(2, 42, 2)])
    assert last.get_xydata() == pytest.approx(np.array([[4.05, 40.5]]))
    apart = [{"step": 1, "kl_sequence": 0.1}, {"step": 2, "reward": 1.0}]
    assert "Reward against KL" not in [panel.title for panel in panels_of(a_run(tmp_path, apart))]


def test_panels_of_distributions(tmp_path):
    rows = [
        *(histogram("eval_rewards/margins", step=step) for step in (10, 20, 1000)),
        histogram("eval_rewards/rejected"),
        histogram("eval_hh_rewards/chosen"),
        histogram("eval_hh_rewards/calibration", confidence=[0.6, 0.8], accuracy=[0.5, 0.9]),
        histogram("eval_none_rewards/calibration", confidence=[None, None], accuracy=[None, None]),
    ]
    assert titles(tmp_path, {"loss": 1.0}, rows) == [
        "Loss",
        "Rewards, evaluation at update 20",
        "Margins, evaluation at update 1,000",
        "Spread of margins, evaluation",
        "Rewards, hh at update 20",
        "Reliability, hh at update 20",
    ]


def test_what_a_curve_panel_draws(tmp_path):
    lines = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": 0.5}, EVALUATION]
    axes = Figure().add_subplot()
    draw_curves(axes, a_run(tmp_path, lines), {"loss": ("loss", "#000000"), "entropy": ("H", "#0000ff")}, "nats")
    crosses, training, no_crosses, evaluation = axes.lines
    assert training.get_xydata().tolist() == [[1, 0.7], [3, 0.5]]
    assert evaluation.get_xydata().tolist() == [[20, 0.6]]
    assert training.get_linewidth() < evaluation.get_linewidth()
    assert crosses.get_xdata().tolist() == [2]
    assert no_crosses.get_xdata().tolist() == []
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("update", "nats")
    assert axes.get_legend() is None  # one metric needs no legend


@pytest.mark.parametrize(
    ("metrics", "drawn", "labels"),
    [
        (
            {"rewards/margins": 0.6, "rewards/margins_neighbors": 0.2},
            [0.6, 0.2],
            ["best minus worst", "neighboring ranks"],
        ),
        ({"rewards/margins": 0.6}, [0.6], None),
        ({"logits/chosen": -1.5, "logits/rejected": -1.25}, [-1.5, -1.25], ["chosen", "rejected"]),
        ({"logits/chosen": -1.5}, [-1.5], None),  # of single answers
    ],
)
def test_what_the_panels_of_margins_and_of_logits_draw(tmp_path, metrics, drawn, labels):
    [panel] = panels_of(a_run(tmp_path, [{"step": step} | metrics for step in (1, 2)]))
    axes = Figure().add_subplot()
    panel.draw(axes)
    lines = [
        line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata())
    ]
    assert lines == [[[1, value], [2, value]] for value in drawn]
    legend = axes.get_legend()
    assert (legend and [text.get_text() for text in legend.get_texts()]) == labels


def test_margins_between_neighbours_and_logits_are_in_the_table(tmp_path):
    of_rankings = {"rewards/margins_neighbors": 0.2, "logits/chosen": -1.5, "logits/rejected": -1.25}
    later = {name: value + 0.5 for name, value in of_rankings.items()}
    assert summary_rows(a_run(tmp_path, [{"step": 1} | of_rankings, {"step": 2} | later])) == [
        SummaryRow("rewards/margins_neighbors", "training", 0.2, 0.7, (0.7, 2)),
        SummaryRow("logits/chosen", "training", -1.5, -1.0, None),
        SummaryRow("logits/rejected", "training", -1.25, -0.75, None),
    ]


def test_what_a_rank_panel_draws(tmp_path):
    ranks = {f"rewards/rank_{place}": -0.1 * place for place in range(1, 11)}
    [panel] = panels_of(a_run(tmp_path, [{"step": 20} | ranks]))
    axes = Figure().add_subplot()
    panel.draw(axes)
    zero, *lines = axes.lines
    assert zero.get_ydata() == [0, 0]
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([-0.1 * place for place in range(1, 11)])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["rank 1", *map(str, range(2, 11))]


# --- The page --------------------------------------------------------------------------------------------------------

EVIL = "<script>alert('1')</script>&\"$x^2$"


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on a tag that is closed out of order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def evil_run(tmp_path) -> Path:
    folder = tmp_path / "<b>run & $x$"
    write_lines(folder / "run_log" / "metrics.jsonl", [*TRAINING, {"step": 20, f"eval_{EVIL}_loss": 0.5}])
    write_lines(folder / "run_log" / "distributions.jsonl", [histogram(f"eval_{EVIL}_rewards/chosen")])
    sample = {"step": 20, "name": f"eval_{EVIL}", "prompt": EVIL, "policy": EVIL, "reference": "half an emoji \ud83d"}
    write_lines(folder / "run_log" / "samples.jsonl", [sample | {"policy_reward": 0.25, "reference_reward": -2.0}])
    (folder / "trl_dpo_ext.json").write_text(json.dumps({"trainer": EVIL, "reference": {"kind": EVIL}}))
    return folder


def test_the_page_needs_nothing_but_itself(evil_run):
    png, html = write_report(read_run(evil_run))
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    text = html.read_text()
    page = Page(text)
    assert "://" not in text.replace("&lt;", "")
    assert set(page.tags) & {"script", "link", "iframe", "object", "img", "image", "base", "b"} == set()
    names = {name for name, _ in page.attributes}
    assert [name for name in names if name.startswith("on")] == []
    assert [value for name, value in page.attributes if name in ("href", "src") and not value.startswith("#")] == []
    assert "@import" not in text
    assert set(text.split("url(")[1:]) == {part for part in text.split("url(")[1:] if part.startswith("#")}


def test_the_page_shows_the_text_of_the_run_as_it_is(evil_run):
    _, html = write_report(read_run(evil_run))
    page = Page(html.read_text())
    # trainer, reference, key to the curves, title of a panel, table, heading of the samples, prompt, answer
    assert page.text.count(EVIL) == 8
    for words in ("<b>run & $x$", "half an emoji ?", "reward 0.2500", "reward \N{MINUS SIGN}2", "Bad sign:", "at 20"):
        assert words in page.text


def test_each_panel_has_a_picture_and_a_reading(tmp_path):
    run = a_run(tmp_path, [*TRAINING, EVALUATION])
    _, html = write_report(run)
    page = Page(html.read_text())
    panels = panels_of(run)
    assert page.tags.count("figcaption") == page.tags.count("figure") == len(panels) == 3
    assert page.tags.count("svg") == 3 + 2  # and the key: training, evaluation
    for panel in panels:
        assert panel.reading in page.text
        assert panel.bad_sign in page.text


def test_the_same_run_gives_the_same_page(tmp_path):
    run = a_run(tmp_path, [*TRAINING, EVALUATION])
    first, second = (write_report(run, tmp_path / name)[1].read_text() for name in ("a", "b"))
    assert first == second


def test_a_long_run_stays_a_small_page(tmp_path):
    run = a_run(tmp_path, [{"step": step, "loss": math.sin(step), "entropy": 1.0} for step in range(1, 5001)])
    _, html = write_report(run)
    assert html.stat().st_size < 100_000


# --- The command -----------------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    a_run(tmp_path / "run", [*TRAINING, {"step": 30, "loss": math.nan}])
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "pages" / "new")]) == 0
    printed = capsys.readouterr()
    html, png = (tmp_path / "pages" / "new" / f"report.{ending}" for ending in ("html", "png"))
    assert printed.out == f"Wrote {html} and {png}.\n"
    assert printed.err == "Note: `loss` is not finite at 1 updates (crosses), the first 30.\n"
    assert html.is_file()
    assert png.is_file()


def test_command_without_a_run(tmp_path, capsys):
    def error_of(folder: Path) -> str:
        assert main(["report", str(folder)]) == 2
        return capsys.readouterr().err.removeprefix("trl-dpo-ext report: ").strip()

    (tmp_path / "dpo-model" / "checkpoint-3").mkdir(parents=True)
    missing = tmp_path / "dpo-modle"
    assert error_of(missing) == f"There is no folder {missing}. Did you mean {tmp_path / 'dpo-model'}?"
    assert error_of(tmp_path / "a" / "b").endswith("Pass the `output_dir` of a run.")
    empty = tmp_path / "dpo-model"
    assert error_of(empty) == (
        f"{empty} holds no metrics of a run: no line in run_log/metrics.jsonl, no trainer_state.json, no checkpoint "
        "with one. Pass the `output_dir` of a run. Metrics are logged every `logging_steps` updates."
    )
    state = empty / "checkpoint-3" / "trainer_state.json"
    state.write_text('{"log_history": []}')
    assert error_of(empty).startswith(f"{state} holds no metrics yet: none was logged.")
    write_lines(tmp_path / "other" / "deep" / "run_log" / "metrics.jsonl", TRAINING)
    assert find_runs(tmp_path) == [empty, tmp_path / "other" / "deep"]
    assert error_of(tmp_path).endswith(f": {empty}, {tmp_path / 'other' / 'deep'}.")
    assert error_of(state) == f"There is no folder {state}. It is a file. Pass its folder, {state.parent}."


def test_command_without_matplotlib(tmp_path):
    a_run(tmp_path, TRAINING)
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from trl_dpo_ext.cli import main\n"
        "sys.exit(main(['report', sys.argv[1]]))"
    )
    finished = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert finished.returncode == 2
    assert 'The report needs matplotlib: pip install "trl-dpo-ext[report]"' in finished.stderr
