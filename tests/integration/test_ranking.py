"""`RankingDPOTrainer`: invariants 1, 2, 6 and 7 on rankings of 2 to 9 completions."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from closeness import EXACT, ROUNDING, same
from datasets import Dataset
from integration.conftest import CONTINUOUS, TINY, assert_same_run, updates
from peft import get_peft_model
from scipy.stats import kendalltau
from tiny import lora_config, preference_rows, ranking_rows, tiny_llama, tiny_tokenizer
from transformers import BitsAndBytesConfig

from trl_dpo_ext import RankingDPOConfig, RankingDPOTrainer
from trl_dpo_ext.theory import plackett_luce


pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def ranked(tmp_path) -> Callable[..., RankingDPOTrainer]:
    """Builds a trainer on rankings, trains it, and returns it."""

    def run(model: Any, options: dict[str, Any] | None = None, resume: Any = None, **kwargs: Any) -> RankingDPOTrainer:
        kwargs.setdefault("train_dataset", ranking_rows(12, [4]))
        args = RankingDPOConfig(str(tmp_path / "out"), **TINY | (options or {}))
        trainer = RankingDPOTrainer(model=model, args=args, **kwargs)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


class TestStepZero:
    @pytest.mark.parametrize("size", [2, 3, 5, 9])
    @pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=pytest.mark.float32)], ids=["float64", "bf16"])
    def test_first_loss_is_log_of_the_number_of_orders(self, ranked, llama_folder, size, bf16):
        trainer = ranked(llama_folder, {"max_steps": 1, "bf16": bf16}, train_dataset=ranking_rows(4, [size]))
        first = updates(trainer)[0]
        # Autocast takes the loss in float32, of rewards that are exactly 0: a sum of at most eight logarithms
        tolerance = 8 * ROUNDING if bf16 else EXACT
        assert first["loss"] == pytest.approx(math.lgamma(size + 1), rel=tolerance)
        assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0
        # The exponential of up to 13 nats
        assert first["rewards/order_probabilities"] == pytest.approx(1 / math.factorial(size), rel=13 * tolerance)
        assert first["rewards/accuracies"] == first["rewards/top1_accuracies"] == first["rewards/kendall_tau"] == 0.0

    def test_ties_leave_fewer_orders(self, ranked, llama_folder):
        trainer = ranked(llama_folder, {"max_steps": 1}, train_dataset=ranking_rows(4, [4], ranks=[[0, 1, 1, 2]]))
        assert updates(trainer)[0]["loss"] == same(math.log(math.factorial(4) / 2))

    def test_only_the_first_places_observed(self, ranked, llama_folder):
        trainer = ranked(llama_folder, {"max_steps": 1, "top_m": 2}, train_dataset=ranking_rows(4, [4]))
        assert updates(trainer)[0]["loss"] == same(math.log(4 * 3))

    def test_adapter(self, ranked, llama_folder):
        trainer = ranked(llama_folder, {"max_steps": 2}, peft_config=lora_config())
        first, second = updates(trainer)
        assert first["loss"] == same(math.log(24)) and first["rewards/chosen"] == 0.0
        assert second["rewards/margins"] != 0.0

    def test_trained_adapter(self, ranked):
        model = get_peft_model(tiny_llama(), lora_config(init_lora_weights=False))
        trainer = ranked(model, {"max_steps": 2}, processing_class=tiny_tokenizer())
        first, second = updates(trainer)
        assert first["loss"] == same(math.log(24)) and first["rewards/chosen"] == 0.0
        assert second["rewards/margins"] != 0.0

    @pytest.mark.float32
    def test_four_bit_model(self, ranked, llama_folder):
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        trainer = ranked(llama_folder, {"max_steps": 2}, peft_config=lora_config(), quantization_config=quantization)
        first, second = updates(trainer)
        assert first["loss"] == pytest.approx(math.log(24), rel=8 * ROUNDING) and first["rewards/chosen"] == 0.0
        assert second["rewards/margins"] != 0.0

    def test_chat(self, ranked, llama_folder):
        rows = ranking_rows(4, [3]).map(
            lambda row: {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completions": [[{"role": "assistant", "content": text}] for text in row["completions"]],
            }
        )
        trainer = ranked(llama_folder, {"max_steps": 1}, train_dataset=rows)
        assert updates(trainer)[0]["loss"] == same(math.log(6))

    def test_instance(self, ranked):
        trainer = ranked(tiny_llama(3), {"max_steps": 1}, processing_class=tiny_tokenizer())
        assert updates(trainer)[0]["rewards/chosen"] == 0.0

    def test_reference_free(self, ranked, llama_folder):
        trainer = ranked(llama_folder, {"max_steps": 1, "reference_free": True})
        first = updates(trainer)[0]
        assert trainer.ref_model is None
        assert first["rewards/chosen"] == same(0.1 * first["logps/chosen"])


class TestSameNumbers:
    @pytest.mark.parametrize(
        "options", [{}, pytest.param({"bf16": True}, marks=pytest.mark.float32)], ids=["float64", "bf16"]
    )
    def test_two_completions_are_a_pair(self, ranked, trained, llama_folder, options):
        rows = preference_rows(12)
        as_rankings = rows.map(
            lambda row: {"completions": [row["chosen"], row["rejected"]]}, remove_columns=["chosen", "rejected"]
        )
        pairs = trained(llama_folder, options, train_dataset=rows)
        rel = 2e-2 if options else EXACT
        assert_same_run(ranked(llama_folder, options, train_dataset=as_rankings), pairs, rel, CONTINUOUS)
        assert_same_run(ranked(llama_folder, options, train_dataset=rows), pairs, rel, CONTINUOUS)

    def test_accumulation_of_ragged_rows(self, ranked, llama_folder):
        rows = ranking_rows(12, [2, 9, 4, 3, 7])
        options = {"global_batch_size": 8, "num_train_epochs": 2}
        whole = ranked(llama_folder, options | {"per_device_train_batch_size": 8}, train_dataset=rows)
        for size in (4, 1):
            split = ranked(llama_folder, options | {"per_device_train_batch_size": size}, train_dataset=rows)
            assert_same_run(split, whole)

    @pytest.mark.parametrize("adapter", [None, lora_config()], ids=["full", "adapter"])
    def test_cached_reference(self, ranked, llama_folder, tmp_path, adapter):
        rows = ranking_rows(12, [2, 5, 3])
        live = ranked(llama_folder, train_dataset=rows, peft_config=adapter)
        options = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(tmp_path / "cache")}
        cached = ranked(
            llama_folder, options | {"precompute_ref_batch_size": 5}, train_dataset=rows, peft_config=adapter
        )
        again = ranked(llama_folder, options | {"beta": 0.1}, train_dataset=rows, peft_config=adapter)
        assert [len(row) for row in cached.train_dataset["ref_logps"]] == [2, 5, 3] * 4
        assert len(list((tmp_path / "cache").iterdir())) == 1
        assert_same_run(cached, live, names=CONTINUOUS)
        assert_same_run(again, cached, rel=0.0)

    def test_log_probabilities_that_pairs_bring(self, ranked, trained, llama_folder):
        rows = preference_rows(12).add_column("ref_chosen_logps", [-150.0] * 12)
        rows = rows.add_column("ref_rejected_logps", [-140.0] * 12)
        as_rankings = ranked(llama_folder, {"max_steps": 2}, train_dataset=rows)
        assert as_rankings.ref_model is None
        assert_same_run(as_rankings, trained(llama_folder, {"max_steps": 2}, train_dataset=rows))

    def test_gradient_checkpointing(self, ranked, llama_folder):
        off, on = (ranked(llama_folder, {"gradient_checkpointing": value}) for value in (False, True))
        assert_same_run(on, off, rel=0.0)

    def test_resumed_run_is_the_straight_run(self, ranked, llama_folder):
        options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
        straight = ranked(llama_folder, options, train_dataset=ranking_rows(12, [3, 5]))
        checkpoint = f"{straight.args.output_dir}/checkpoint-2"
        resumed = ranked(llama_folder, options, resume=checkpoint, train_dataset=ranking_rows(12, [3, 5]))
        assert_same_run(resumed, straight, rel=0.0)

    def test_scores_are_ranks(self, ranked, llama_folder):
        by_rank = ranking_rows(8, [4], ranks=[[0, 1, 1, 2]])
        by_score = by_rank.remove_columns("ranks").add_column("scores", [[9.0, 5.0, 5.0, -1.0]] * 8)
        shuffled = by_score.map(
            lambda row: {name: [row[name][i] for i in (2, 0, 3, 1)] for name in ("completions", "scores")}
        )
        runs = [ranked(llama_folder, train_dataset=rows) for rows in (by_rank, by_score)]
        assert_same_run(runs[1], runs[0], rel=0.0)
        assert_same_run(ranked(llama_folder, train_dataset=shuffled), runs[0])


class TestMetrics:
    @pytest.mark.parametrize("batch_size", [1, 4, 9])
    def test_evaluation_against_predictions(self, ranked, llama_folder, batch_size):
        rows = ranking_rows(9, [2, 5, 3], ranks=[[0, 1, 1, 2, 3]])
        trainer = ranked(llama_folder, {"learning_rate": 3e-3, "max_steps": 3})
        prediction = trainer.predict(rows)
        trainer.args.per_device_eval_batch_size = batch_size
        metrics = trainer.evaluate(rows)
        found = []
        for rewards, ranks in zip(prediction.predictions, prediction.label_ids, strict=True):
            rewards, ranks = rewards[ranks >= 0].astype(float), ranks[ranks >= 0]
            pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
            best, worst = rewards[ranks == 0].mean(), rewards[ranks == ranks.max()].mean()
            found.append(
                {
                    "rewards/chosen": best,
                    "rewards/rejected": worst,
                    "rewards/margins": best - worst,
                    "rewards/margins_neighbors": (best - worst) / ranks.max(),
                    "rewards/accuracies": np.mean([rewards[i] > rewards[j] for i, j in pairs]),
                    "rewards/top1_accuracies": rewards[ranks == 0].max() > rewards[ranks > 0].max(),
                    "rewards/kendall_tau": kendalltau(-ranks, rewards).statistic,
                }
            )
        assert prediction.predictions.shape == (9, 5)
        assert np.isnan(prediction.predictions[prediction.label_ids == -1]).all()
        for name in found[0]:
            assert metrics[f"eval_{name}"] == same(np.mean([row[name] for row in found]))
        for place in range(1, 5):
            at_place = prediction.predictions[prediction.label_ids == place - 1]
            assert metrics[f"eval_rewards/rank_{place}"] == same(at_place.mean())

    def test_probability_of_the_observed_order(self, ranked, llama_folder):
        rows = ranking_rows(6, [4])
        trainer = ranked(llama_folder, {"max_steps": 3}, train_dataset=rows)
        probabilities = plackett_luce(torch.tensor(trainer.predict(rows).predictions)).exp()
        metrics = trainer.evaluate(rows)
        assert metrics["eval_rewards/order_probabilities"] == same(float(probabilities.mean()))
        assert metrics["eval_loss"] == same(float(-probabilities.log().mean()))

    def test_prediction_keeps_every_row(self, ranked, llama_folder):
        trainer = ranked(llama_folder, {"max_steps": 1})
        rows = Dataset.from_list(
            [
                {"prompt": "The film was", "completions": [" good", " bad"], "ranks": [0, 0]},
                {"prompt": "The film was", "completions": [" good", " bad"], "ranks": [0, 1]},
                {"prompt": "The film was", "completions": [" good"], "ranks": [0]},
            ]
        )
        for batch_size in (1, 3):
            trainer.args.per_device_eval_batch_size = batch_size
            output = trainer.predict(rows)
            tied, pair, alone = output.predictions[:, :2]
            assert tied == same(pair) and alone[0] == same(pair[0])
            assert np.isnan(alone[1]) and np.isfinite(pair).all()
            # Only the pair compares anything
            assert output.metrics["test_rewards/margins"] == same(pair[0] - pair[1])
            assert output.metrics["test_rewards/accuracies"] == float(pair[0] > pair[1])


class TestOptions:
    @pytest.mark.parametrize(
        "option",
        [{"loss_type": "hinge"}, {"label_smoothing": 0.1}, {"ld_alpha": 0.5}, {"use_weighting": True}],
        ids=str,
    )
    def test_a_pairwise_option_is_refused(self, tmp_path, option):
        (name,) = option
        with pytest.raises(ValueError, match=f"`{name}=.* has no effect on rankings"):
            RankingDPOConfig(str(tmp_path), use_cpu=True, **option)

    @pytest.mark.parametrize("option", [{"top_m": 0}, {"max_completions": 1}], ids=str)
    def test_values(self, tmp_path, option):
        (name,) = option
        with pytest.raises(ValueError, match=f"`{name}=.*must be at least"):
            RankingDPOConfig(str(tmp_path), use_cpu=True, **option)

    def test_a_longer_row_is_an_error(self, ranked, llama_folder):
        with pytest.raises(ValueError, match="max_completions"):
            ranked(llama_folder, {"max_completions": 3}, train_dataset=ranking_rows(4, [4]))
