"""Preference metrics as `evaluate` modules: values, batches, processes, the trainers' metrics, and no network."""

import json
import math
from itertools import combinations
from pathlib import Path

import datasets
import evaluate
import forked
import numpy as np
import pytest
import torch
from closeness import EXACT
from datasets import Dataset
from integration.conftest import TINY
from scipy.stats import binomtest, bootstrap, kendalltau, norm
from sklearn.calibration import calibration_curve
from tiny import preference_rows

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, RankingDPOConfig, RankingDPOTrainer
from trl_dpo_ext.evaluation import modules, preference_metrics
from trl_dpo_ext.evaluation.metric_loading import known_metrics, load_metric
from trl_dpo_ext.evaluation.preference_metrics import (
    kendall_tau,
    preference_accuracy,
    preference_calibration,
    reward_margin,
    win_rate,
    win_rate_of_outcomes,
)


OF_RANKINGS = ["preference_accuracy", "kendall_tau", "preference_calibration", "reward_margin"]


def rankings(rows: int = 60, seed: int = 0) -> tuple[list[list[float]], list[list[int | None]]]:
    """Rewards and ranks of 1 to 6 completions in any order, with ties in both; some unranked."""
    rng = np.random.default_rng(seed)
    rewards, ranks = [], []
    for size in rng.integers(1, 7, size=rows):
        rewards.append(np.round(rng.normal(size=size), 1).tolist())
        ranks.append([None if rank == 4 else int(rank) for rank in rng.integers(0, 5, size=size)])
    return rewards, ranks


def by_hand(rewards, ranks) -> dict[str, list[float]]:
    """Metrics of each prompt with an order, computed in loops, with pairs and margins."""
    found = {"accuracy": [], "ties": [], "tau": [], "margin": [], "pairs": []}
    for row, places in zip(rewards, ranks, strict=True):
        places = [99 if place is None else place for place in places]
        pairs = [
            row[i] - row[j] if places[i] < places[j] else row[j] - row[i]
            for i, j in combinations(range(len(row)), 2)
            if places[i] != places[j]
        ]
        if not pairs:
            continue
        found["accuracy"].append(np.mean([margin > 0 for margin in pairs]))
        found["ties"].append(np.mean([margin == 0 for margin in pairs]))
        found["tau"].append(np.nan_to_num(kendalltau(row, [-place for place in places]).statistic))
        best, worst = (
            np.mean([reward for reward, place in zip(row, places, strict=True) if place == end])
            for end in (min(places), max(places))
        )
        found["margin"].append(best - worst)
        found["pairs"].append(pairs)
    return found


def wilson(wins: float, num: int, level: float = 0.95) -> tuple[float, float]:
    """Where (p - rate)^2 = z^2 p (1 - p) / num."""
    z2, rate = norm.ppf((1 + level) / 2) ** 2, wins / num
    low, high = sorted(np.roots([1 + z2 / num, -(2 * rate + z2 / num), rate * rate]).real)
    return low, high


def same(found, expected, rel: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=rel, abs=1e-12, nan_ok=True), name


class TestValues:
    def test_accuracy(self):
        rewards, ranks = rankings()
        expected = by_hand(rewards, ranks)
        metrics = preference_accuracy(rewards, ranks)
        assert metrics["preference_accuracy"] == pytest.approx(np.mean(expected["accuracy"]), rel=1e-12)
        assert metrics["ties"] == pytest.approx(np.mean(expected["ties"]), rel=1e-12)
        assert metrics["ties"] > 0
        assert metrics["num_rows"] == len(expected["tau"])
        assert metrics["num_left_out"] == len(rewards) - len(expected["tau"]) > 0

    def test_accuracy_by_subset(self):
        rewards, ranks = rankings()
        subsets = np.random.default_rng(1).choice(["chat", "code", "safety"], size=60, p=[0.6, 0.3, 0.1])
        metrics = preference_accuracy(rewards, ranks, subsets=subsets)
        accuracies = {}
        for name in ("chat", "code", "safety"):
            rows = np.flatnonzero(subsets == name)
            accuracies[name] = np.mean(by_hand([rewards[i] for i in rows], [ranks[i] for i in rows])["accuracy"])
            assert metrics[f"preference_accuracy/{name}"] == pytest.approx(accuracies[name], rel=1e-12)
        assert metrics["mean_over_subsets"] == pytest.approx(np.mean(list(accuracies.values())), rel=1e-12)
        assert metrics["mean_over_subsets"] != pytest.approx(metrics["preference_accuracy"], rel=1e-3)
        assert metrics | preference_accuracy(rewards, ranks) == metrics

    def test_kendall_tau_against_scipy(self):
        rewards, ranks = rankings(rows=200)
        expected = by_hand(rewards, ranks)["tau"]
        assert kendall_tau(rewards, ranks)["kendall_tau"] == pytest.approx(np.mean(expected), rel=1e-12)

    @pytest.mark.parametrize("bins", [5, 10])
    def test_calibration_against_scikit_learn(self, bins):
        rewards = np.random.default_rng(bins).normal(scale=2, size=(500, 2))
        margins = rewards[:, 0] - rewards[:, 1]
        confidence = 1 / (1 + np.exp(-abs(margins)))
        # Of [0, 1] the upper half holds all confidences
        accuracy, mean_confidence = calibration_curve(margins > 0, confidence, n_bins=2 * bins)
        counts = np.histogram(confidence, bins=np.linspace(0.5, 1, bins + 1))[0]
        metrics = preference_calibration(rewards, bins=bins)
        assert (counts > 0).all()
        assert metrics["counts"] == counts.tolist()
        assert metrics["edges"] == pytest.approx(np.linspace(0.5, 1, bins + 1))
        assert metrics["accuracy"] == pytest.approx(accuracy, rel=1e-12)
        assert metrics["confidence"] == pytest.approx(mean_confidence, rel=1e-12)
        expected = np.average(abs(accuracy - mean_confidence), weights=counts)
        assert metrics["calibration_error"] == pytest.approx(expected, rel=1e-12)

    def test_calibration_of_rankings_against_a_loop(self):
        rewards, ranks = rankings()
        right, sure, counts = np.zeros(10), np.zeros(10), np.zeros(10)
        pairs_by_row = by_hand(rewards, ranks)["pairs"]
        for pairs in pairs_by_row:
            for margin in pairs:
                confidence = 1 / (1 + math.exp(-abs(margin)))
                place = min(int((confidence - 0.5) * 20), 9)
                counts[place] += 1 / len(pairs)
                sure[place] += confidence / len(pairs)
                right[place] += (0.5 if margin == 0 else margin > 0) / len(pairs)
        metrics = preference_calibration(rewards, ranks)
        assert metrics["counts"] == pytest.approx(counts, abs=1e-12)
        assert metrics["calibration_error"] == pytest.approx(abs(right - sure).sum() / len(pairs_by_row), rel=1e-12)

    def test_margin(self):
        rewards, ranks = rankings()
        margins = by_hand(rewards, ranks)["margin"]
        metrics = reward_margin(rewards, ranks, confidence_level=0.9, seed=3)
        assert metrics["reward_margin"] == pytest.approx(np.mean(margins), rel=1e-12)
        options = {"confidence_level": 0.9, "method": "percentile", "random_state": np.random.default_rng(3)}
        drawn = bootstrap((np.sort(margins),), np.mean, **options)
        assert metrics["low"] == pytest.approx(drawn.confidence_interval.low, rel=1e-12)
        assert metrics["high"] == pytest.approx(drawn.confidence_interval.high, rel=1e-12)
        assert metrics["low"] != reward_margin(rewards, ranks, confidence_level=0.9, seed=4)["low"]

    def test_the_interval_of_many_margins_is_the_normal_one(self):
        rewards = np.random.default_rng(0).normal(size=(4000, 2)) + [0.3, 0]
        margins = rewards[:, 0] - rewards[:, 1]
        metrics = reward_margin(rewards)
        reach = norm.ppf(0.975) * margins.std() / np.sqrt(4000)
        assert metrics["low"] == pytest.approx(margins.mean() - reach, abs=0.05 * reach)
        assert metrics["high"] == pytest.approx(margins.mean() + reach, abs=0.05 * reach)

    def test_how_many_are_drawn_at_once_changes_nothing(self, monkeypatch):
        rewards, ranks = rankings()
        expected = reward_margin(rewards, ranks)
        monkeypatch.setattr(preference_metrics, "_DRAWN_AT_ONCE", 500)
        assert reward_margin(rewards, ranks) == expected

    @pytest.mark.parametrize("wins, losses", [(61, 39), (0, 7), (7, 0), (1, 0)])
    @pytest.mark.parametrize("level", [0.8, 0.95])
    def test_wilson_interval_against_scipy(self, wins, losses, level):
        metrics = win_rate_of_outcomes(["loss"] * losses + ["win"] * wins, confidence_level=level)
        expected = binomtest(wins, wins + losses).proportion_ci(level, method="wilson")
        assert metrics["win_rate"] == wins / (wins + losses)
        assert (metrics["low"], metrics["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)

    def test_win_rate_of_scores(self):
        rng = np.random.default_rng(0)
        ours, theirs = rng.integers(0, 5, size=(2, 90)).astype(np.float32)
        wins, ties = int((ours > theirs).sum()), int((ours == theirs).sum())
        metrics = win_rate(ours, theirs)
        low, high = wilson(wins + ties / 2, 90)
        same(
            metrics,
            {
                "win_rate": (wins + ties / 2) / 90,
                "low": low,
                "high": high,
                "wins": wins,
                "ties": ties,
                "losses": 90 - wins - ties,
            },
        )
        assert metrics == win_rate(torch.tensor(ours), list(theirs))
        assert win_rate(theirs, ours)["win_rate"] == pytest.approx(1 - metrics["win_rate"])

    def test_prompts_without_an_order_compare_nothing(self):
        rewards, ranks = [[0.3], [0.1, 0.2]], [[0], [1, 1]]
        for name in OF_RANKINGS:
            metrics = getattr(preference_metrics, name)(rewards, ranks)
            assert (metrics["num_rows"], metrics["num_left_out"]) == (0, 2)
            assert math.isnan(next(iter(metrics.values())))

    def test_one_prompt_has_no_interval(self):
        metrics = reward_margin([[1.0, 0.5]])
        assert metrics["reward_margin"] == 0.5
        assert math.isnan(metrics["low"]) and math.isnan(metrics["high"])


class TestInput:
    @pytest.mark.parametrize("name", OF_RANKINGS)
    def test_lists_arrays_and_what_predict_returns_are_the_same(self, name):
        metric = getattr(preference_metrics, name)
        rewards, ranks = rankings()
        ranks = [[9 if rank is None else rank for rank in row] for row in ranks]
        padded_rewards, padded_ranks = np.full((60, 6), np.nan), np.full((60, 6), -1)
        for b, (row, places) in enumerate(zip(rewards, ranks, strict=True)):
            padded_rewards[b, : len(row)], padded_ranks[b, : len(row)] = row, places
        expected = metric(rewards, ranks)
        same(metric(padded_rewards, padded_ranks), expected)
        same(metric(torch.tensor(padded_rewards), torch.tensor(padded_ranks)), expected)
        same(metric([np.array(row) for row in rewards], ranks), expected)

    @pytest.mark.parametrize("name", OF_RANKINGS)
    def test_the_order_of_prompts_and_of_completions_changes_nothing(self, name):
        metric = getattr(preference_metrics, name)
        rewards, ranks = rankings()
        rows = np.random.default_rng(1).permutation(60)
        same(metric([rewards[i][::-1] for i in rows], [ranks[i][::-1] for i in rows]), metric(rewards, ranks))

    @pytest.mark.parametrize("name", OF_RANKINGS)
    def test_by_default_the_best_comes_first(self, name):
        metric = getattr(preference_metrics, name)
        rewards = [[0.2, 0.1, 0.4], [0.3, 0.5]]
        assert str(metric(rewards)) == str(metric(rewards, [[0, 1, 2], [0, 1]]))

    @pytest.mark.parametrize(
        "rewards, ranks, message",
        [
            ([], [], "no rows to compare"),
            ([[1, 2]], [], "1 rows of rewards and 0 of ranks"),
            ([[1, 2], [1, 2]], [[0, 1], [0]], "Row 1 has 2 rewards and 1 ranks"),
            ([[]], None, "Row 0 has 0 rewards"),
            ([0.3, 0.1], None, "Row 0 of the rewards is 0.3"),
            ([[1, 2]], ["01"], "Row 0 of the ranks is '01'"),
            ([[1, 2], [1, "high"]], None, "could not convert string to float: 'high'"),
            ([[1, 2], [1, math.nan]], None, "Row 1, completion 1: reward nan, rank 1"),
            ([[1, math.inf]], None, "Row 0, completion 1: reward inf"),
            ([[1, None]], [[0, 1]], "Row 0, completion 1: reward nan"),
            ([[1, 2]], [[0, -1]], "reward 2, rank -1; "),
            ([[1, 2]], [[0.7, 0.2]], "rank 0.7; "),
            ([[1, 2]], [[0, -2]], "rank -2; "),
            ([[1, 2]], [[0, math.nan]], "rank nan; "),
        ],
    )
    @pytest.mark.parametrize("name", OF_RANKINGS)
    def test_malformed_rows(self, name, rewards, ranks, message):
        with pytest.raises(ValueError, match=message):
            getattr(preference_metrics, name)(rewards, ranks)

    @pytest.mark.parametrize(
        "call, message",
        [
            (lambda: preference_accuracy([[1, 2]], subsets=[]), "1 rows and 0 subsets"),
            (lambda: preference_accuracy([[1, 2]] * 2, subsets=["a", None]), "Row 1 has no subset"),
            (lambda: preference_calibration([[1, 2]], bins=0), "`bins=0` must be at least 1"),
            (lambda: reward_margin([[1, 2]], confidence_level=95), "`confidence_level=95` must be between 0 and 1"),
            (lambda: reward_margin([[1, 2]], num_resamples=0), "`num_resamples=0` must be at least 1"),
            (lambda: win_rate([1, 2], [1]), "2 scores and 1 of the baseline"),
            (lambda: win_rate([1, 2], [1, math.nan]), "Row 1 has the scores 2 and nan"),
            (lambda: win_rate([1, "2"], [1, 2]), "Row 1 has the scores '2' and 2"),
            (lambda: win_rate([], []), "no outcomes"),
            (lambda: win_rate([1], [1], confidence_level=1), "`confidence_level=1` must be between"),
            (lambda: win_rate_of_outcomes(["win", "won"]), "Row 1 has the outcome 'won'"),
        ],
    )
    def test_other_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.fixture
def load(tmp_path):
    """`load_metric` with a cache of its own."""

    def with_cache(name, config_name=None, **kwargs):
        return load_metric(name, config_name, cache_dir=str(tmp_path), **kwargs)

    return with_cache


class TestModules:
    def test_known_ones(self):
        assert known_metrics() == sorted([*OF_RANKINGS, "win_rate"])

    def test_an_unknown_name(self):
        with pytest.raises(ValueError, match="no metric 'accuracy'. .* kendall_tau, "):
            load_metric("accuracy")

    @pytest.mark.parametrize("name", ["preference_accuracy", "win_rate"])
    def test_an_unknown_configuration(self, name):
        with pytest.raises(ValueError, match="no configuration 'columns'"):
            load_metric(name, "columns")

    @pytest.mark.parametrize("name", OF_RANKINGS)
    @pytest.mark.parametrize("batch_size", [1, 7, 60])
    def test_batches_change_nothing(self, load, name, batch_size):
        rewards, ranks = rankings()
        metric = load(name)
        assert metric.name == name and metric.description and metric.citation and metric.inputs_description
        for start in range(0, 60, batch_size):
            rows = slice(start, start + batch_size)
            if batch_size == 1:
                metric.add(prediction=rewards[start], reference=ranks[start])
            else:
                metric.add_batch(predictions=rewards[rows], references=ranks[rows])
        expected = getattr(preference_metrics, name)(rewards, ranks)
        assert str(metric.compute()) == str(expected)
        assert str(metric.compute(predictions=rewards, references=ranks)) == str(expected)

    def test_options_reach_the_function(self, load):
        rewards, ranks = rankings()
        data = {"predictions": rewards, "references": ranks}
        assert len(load("preference_calibration").compute(**data, bins=3)["counts"]) == 3
        options = {"confidence_level": 0.5, "num_resamples": 100, "seed": 7}
        assert load("reward_margin").compute(**data, **options) == reward_margin(rewards, ranks, **options)
        subsets = ["a", "b", "c"] * 20
        expected = preference_accuracy(rewards, ranks, subsets=subsets)
        assert load("preference_accuracy").compute(**data, subsets=subsets) == expected
        by_column = load("preference_accuracy", "subsets")
        by_column.add_batch(predictions=rewards[:20], references=ranks[:20], subsets=subsets[:20])
        by_column.add_batch(predictions=rewards[20:], references=ranks[20:], subsets=subsets[20:])
        assert by_column.compute() == expected

    def test_win_rate_of_scores_and_of_outcomes(self, load):
        ours, theirs = [0.9, 0.5, 0.8, 0.7, 0.1], [0.1, 0.5, 0.9, 0.2, 0.0]
        expected = win_rate(ours, theirs, confidence_level=0.9)
        assert load("win_rate").compute(predictions=ours, references=theirs, confidence_level=0.9) == expected
        outcomes = ["win", "tie", "loss", "win", "win"]
        assert load("win_rate", "outcomes").compute(predictions=outcomes, confidence_level=0.9) == expected

    def test_tensors_of_a_trainer(self, load):
        rewards = torch.tensor([[1.0, 0.5, torch.nan], [0.25, 0.5, 2.0]])
        ranks = torch.tensor([[0, 1, -1], [0, 1, 1]])
        for dtype in (torch.float32, torch.bfloat16):
            metrics = load("kendall_tau").compute(predictions=rewards.to(dtype), references=ranks)
            expected = (1 + kendalltau([0.25, 0.5, 2.0], [0, -1, -1]).statistic) / 2
            assert metrics["kendall_tau"] == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize(
        "data, message",
        [
            ({"predictions": [], "references": []}, "no rows to compare"),
            (
                {"predictions": [[1, 2]] * 3, "references": [[0, 1]] * 2},
                "number of predictions .3. and references",
            ),
            ({"predictions": [[1, math.nan]], "references": [[0, 1]]}, "Row 0, completion 1: reward nan"),
            ({"predictions": [[1, 2]], "references": [[0.7, 0.2]]}, "rank 0.7; "),
            ({"predictions": [1, 2], "references": [0, 1]}, "don't match the expected format"),
        ],
    )
    @pytest.mark.parametrize("name", OF_RANKINGS)
    def test_bad_input_is_one_error_and_the_module_goes_on(self, load, name, data, message):
        metric = load(name, keep_in_memory=True)
        with pytest.raises(ValueError, match=message):
            metric.compute(**data)
        again = metric.compute(predictions=[[1, 2]] * 2, references=[[1, 0]] * 2)
        assert again["num_rows"] == 2

    def test_combined(self, load):
        rewards, ranks = rankings()
        metrics = evaluate.combine([load(name) for name in OF_RANKINGS]).compute(predictions=rewards, references=ranks)
        assert metrics["kendall_tau"] == kendall_tau(rewards, ranks)["kendall_tau"]
        assert metrics["reward_margin"] == reward_margin(rewards, ranks)["reward_margin"]

    def test_features_are_the_users_columns(self, load):
        assert list(load("preference_accuracy", "subsets").features) == ["predictions", "references", "subsets"]
        assert load("win_rate", "outcomes").features == {"predictions": datasets.Value("string")}


# What a user may type first
FIRST_LINES = ["import datasets, evaluate", "from evaluate import load; import evaluate, datasets"]
ONE_OF_TWO = """
import json, socket, sys

{first_line}

def refuse(*args):
    raise AssertionError(f"network: {{args}}")

socket.socket.connect = socket.getaddrinfo = refuse

from trl_dpo_ext.evaluation.metric_loading import known_metrics, load_metric

place, folder = int(sys.argv[1]), sys.argv[2]
rewards, ranks = json.loads(sys.argv[3])
found = {{}}
for name in known_metrics():
    path = f"{{folder}}/{{name}}"
    assert type(evaluate.load(path)) is type(evaluate.load(path)) is type(load_metric(name))
    columns = (rewards, ranks) if name != "win_rate" else zip(*((row[0], row[-1]) for row in rewards))
    predictions, references = columns
    for split, mine in {{"alternate": slice(place, None, 2), "uneven": slice(45 * place, 45 + 45 * place)}}.items():
        metric = evaluate.load(path, num_process=2, process_id=place, experiment_id=split)
        ours, theirs = predictions[mine], references[mine]
        for start in range(0, len(ours), 7):
            metric.add_batch(predictions=ours[start : start + 7], references=theirs[start : start + 7])
        found[f"{{name}} {{split}}"] = metric.compute()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_that_start_at_once_without_a_network(tmp_path):
    rewards, ranks = rankings()
    arguments = [str(Path(modules.__file__).parent), json.dumps([rewards, ranks])]
    programs = []
    for place, first_line in enumerate(FIRST_LINES):
        (tmp_path / f"{place}.py").write_text(ONE_OF_TWO.format(first_line=first_line))
        words = [str(tmp_path / f"{place}.py"), str(place), *arguments]
        programs.append(forked.start(words, tmp_path / f"log{place}", env={"HF_HOME": str(tmp_path)}))
    assert forked.wait_for_all(programs, 200) == [0, 0], [program.output[-2000:] for program in programs]
    main, other = (json.loads(program.output.splitlines()[-1]) for program in programs)
    assert len(other) == 10 and set(other.values()) == {None}
    for split in ("alternate", "uneven"):
        for name in OF_RANKINGS:
            same(main[f"{name} {split}"], getattr(preference_metrics, name)(rewards, ranks))
        same(main[f"win_rate {split}"], win_rate([row[0] for row in rewards], [row[-1] for row in rewards]))


@pytest.mark.usefixtures("float64")
class TestTrainers:
    """What trainers log is what the metrics say of their predictions."""

    METRICS = {
        "preference_accuracy": ("preference_accuracy", "rewards/accuracies"),
        "kendall_tau": ("kendall_tau", "rewards/kendall_tau"),
        "preference_calibration": ("calibration_error", "rewards/calibration_error"),
        "reward_margin": ("reward_margin", "rewards/margins"),
    }

    def check(self, load, trainer, rows, names) -> None:
        logged, output = trainer.evaluate(rows), trainer.predict(rows)
        for name in names:
            metric, key = self.METRICS[name]
            metrics = load(name).compute(predictions=output.predictions, references=output.label_ids)
            assert metrics[metric] == pytest.approx(logged[f"eval_{key}"], rel=EXACT, abs=EXACT), name
            assert metrics[metric] != 0 and metrics["num_rows"] == len(rows)

    def test_pairs(self, load, tmp_path, llama_folder):
        args = DPOPaperConfig(str(tmp_path / "out"), **TINY | {"learning_rate": 3e-3, "max_steps": 3})
        trainer = DPOPaperTrainer(llama_folder, args=args, train_dataset=preference_rows(12))
        trainer.train()
        self.check(
            load,
            trainer,
            preference_rows(9, start=20),
            ["preference_accuracy", "preference_calibration", "reward_margin"],
        )

    def test_rankings(self, load, tmp_path, llama_folder):
        endings = [" superb", " fine", " slow", " dull", " dreadful"]
        ranks = [[0, 1, 2, 3, 4], [0, 1, 1, 2], [0, 0, 1], [0, 1], [0, 1, 1, None, None]]
        rows = Dataset.from_list(
            [
                {
                    "prompt": f"In {1900 + 7 * i} the film was",
                    "completions": [f"{ending}, and number {i * j}" for j, ending in enumerate(endings)][
                        : len(ranks[i % 5])
                    ],
                    "ranks": ranks[i % 5],
                }
                for i in range(12)
            ]
        )
        args = RankingDPOConfig(str(tmp_path / "out"), **TINY | {"learning_rate": 3e-3, "max_steps": 3})
        trainer = RankingDPOTrainer(llama_folder, args=args, train_dataset=rows)
        trainer.train()
        self.check(load, trainer, rows, OF_RANKINGS)
