"""The files that a run writes, metrics, distributions and samples, and their values."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import ROUNDING, same
from integration.conftest import TINY
from tiny import lora_config, preference_rows, tiny_llama, tiny_tokenizer

from trl_dpo_ext import (
    DPOPaperConfig,
    DPOPaperTrainer,
    PreferredFTConfig,
    PreferredFTTrainer,
    RankingDPOConfig,
    RankingDPOTrainer,
    UnlikelihoodConfig,
    UnlikelihoodTrainer,
)
from trl_dpo_ext.evaluation import Sampler
from trl_dpo_ext.trainers.logs.likelihood_displacement import DisplacementWatch


pytestmark = pytest.mark.usefixtures("float64")

TRAINS = {"max_steps": 4, "learning_rate": 3e-3}
EVALUATES = TRAINS | {"eval_strategy": "steps", "eval_steps": 2}


def lines(trainer, name: str) -> list[dict]:
    path = Path(trainer.args.output_dir, "run_log", f"{name}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def token_logps(model, prompt_ids: list[int], completion_ids: list[int]) -> torch.Tensor:
    """With full logits, in plain torch."""
    ids = torch.tensor([prompt_ids + completion_ids])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0].log_softmax(dim=-1)
    return logps[:-1].gather(1, ids[0, 1:, None])[len(prompt_ids) - 1 :, 0]


class TestMetrics:
    def test_each_log_is_a_line(self, trained, llama_folder):
        trainer = trained(llama_folder, EVALUATES, eval_dataset=preference_rows(5, start=20))
        assert lines(trainer, "metrics") == trainer.state.log_history
        assert {line["step"] for line in lines(trainer, "metrics")} == {1, 2, 3, 4}

    def test_a_run_that_starts_anew_replaces_another_one(self, trained, llama_folder):
        trained(llama_folder, EVALUATES, eval_dataset=preference_rows(5, start=20))
        second = trained(llama_folder, {"max_steps": 2})
        assert lines(second, "metrics") == second.state.log_history
        assert lines(second, "distributions") == []

    def test_an_evaluation_before_the_training_stays(self, config, llama_folder):
        rows = preference_rows(5, start=20)
        trainer = DPOPaperTrainer(
            llama_folder, args=config(max_steps=1), train_dataset=preference_rows(8), eval_dataset=rows
        )
        trainer.evaluate()
        trainer.train()
        steps = [(line["step"], "eval_loss" in line) for line in lines(trainer, "metrics")]
        assert steps == [(0, True), (1, False), (1, False)]

    def test_a_resumed_run_goes_on_where_its_checkpoint_was(self, trained, llama_folder):
        saves = EVALUATES | {"save_strategy": "steps", "save_steps": 2}
        rows = preference_rows(5, start=20)
        straight = trained(llama_folder, saves, eval_dataset=rows)
        written = {name: lines(straight, name) for name in ("metrics", "distributions")}
        with open(Path(straight.args.output_dir, "run_log", "metrics.jsonl"), "a") as stream:
            stream.write('{"loss": 0.1')  # killed
        resumed = trained(llama_folder, saves, resume=f"{straight.args.output_dir}/checkpoint-2", eval_dataset=rows)
        for name, before in written.items():
            after = lines(resumed, name)
            assert [line["step"] for line in after] == [line["step"] for line in before]
            assert after[: len(before) // 2] == before[: len(before) // 2]
        last, again = (log[-2]["eval_rewards/margins"] for log in (written["metrics"], lines(resumed, "metrics")))
        assert again == same(last)


class TestValues:
    def test_drift_and_kl_against_full_logits(self, trained, llama_folder):
        trainer = trained(llama_folder, TRAINS)
        rows = preference_rows(5, start=20)
        metrics = trainer.evaluate(rows)
        prepared, _ = trainer.prepare(rows, trainer.processing_class, trainer.args, "eval")
        drift, kl = {"chosen": [], "rejected": []}, []
        for row in prepared:
            for side, drifts in drift.items():
                policy, reference = (
                    token_logps(model, row["prompt_ids"], row[f"{side}_ids"])
                    for model in (trainer.model, trainer.ref_model)
                )
                gap = (policy - reference).double()
                drifts.append(gap.sum().item())
                kl += (gap.exp() - 1 - gap).tolist()
        assert metrics["eval_kl_per_token"] == same(np.mean(kl))
        assert metrics["eval_kl_per_token"] > 0.01
        for side, drifts in drift.items():
            assert metrics[f"eval_logps/{side}_drift"] == same(np.mean(drifts))
            assert metrics[f"eval_rewards/{side}"] == same(0.1 * np.mean(drifts))

    @pytest.mark.parametrize("sides", [("chosen",), ("chosen", "rejected")], ids=["preferred_ft", "unlikelihood"])
    def test_baselines_log_the_kl_to_a_reference_that_is_asked_for(self, sides, llama_folder, tmp_path):
        trainer_class, config_class = (
            (PreferredFTTrainer, PreferredFTConfig) if len(sides) == 1 else (UnlikelihoodTrainer, UnlikelihoodConfig)
        )
        rows, kl = preference_rows(5, start=20), {}
        for asked in (None, False):
            args = config_class(str(tmp_path), reference_free=asked, **TINY | TRAINS)
            trainer = trainer_class(llama_folder, args=args, train_dataset=preference_rows(12))
            trainer.train()
            kl[asked] = trainer.evaluate(rows).get("eval_kl_per_token")
            assert ("kl_per_token" in trainer.state.log_history[0]) == (asked is False)
        assert kl[None] is None
        expected = []
        for row in trainer.prepare(rows, trainer.processing_class, trainer.args, "eval")[0]:
            answers = [row["chosen_ids"], row["rejected_ids"]] if len(sides) == 2 else row["completion_ids"]
            for ids in answers:
                policy, reference = (
                    token_logps(model, row["prompt_ids"], ids).double() for model in (trainer.model, trainer.ref_model)
                )
                expected += ((policy - reference).exp() - 1 - (policy - reference)).tolist()
        assert kl[False] == same(np.mean(expected))

    def test_before_training_nothing_has_moved(self, config, llama_folder):
        trainer = DPOPaperTrainer(llama_folder, args=config(), train_dataset=preference_rows(4))
        metrics = trainer.evaluate(preference_rows(5, start=20))
        for name in ("kl_per_token", "logps/chosen_drift", "logps/rejected_drift", "rewards/calibration_error"):
            assert metrics[f"eval_{name}"] == 0
        assert metrics["eval_rewards/gradient_weight"] == 0.5
        assert "eval_rewards/length_correlation" not in metrics  # rewards that are all 0 correlate with nothing

    def test_metrics_of_the_rewards_that_predict_returns(self, trained, llama_folder):
        trainer = trained(llama_folder, TRAINS)
        rows = preference_rows(9, start=20)
        metrics = trainer.evaluate(rows)
        rewards = trainer.predict(rows).predictions.astype(float)
        weight = 1 / (1 + np.exp(rewards[:, 0] - rewards[:, 1]))
        assert metrics["eval_rewards/gradient_weight"] == same(weight.mean())
        assert metrics["eval_rewards/gradient_weight_near_0"] == (weight < 0.05).mean()
        prepared, _ = trainer.prepare(rows, trainer.processing_class, trainer.args, "eval")
        chosen, rejected = (np.array(list(map(len, prepared[f"{side}_ids"]))) for side in ("chosen", "rejected"))
        longer = (np.sign(chosen - rejected) + 1) / 2
        assert metrics["eval_rewards/accuracies_from_length"] == longer.mean()
        margins, lengths = rewards[:, 0] - rewards[:, 1], chosen - rejected
        correlation = (margins * lengths).sum() / np.sqrt((margins**2).sum() * (lengths**2).sum())
        assert metrics["eval_rewards/length_correlation"] == same(correlation)

    def test_rankings_of_two_have_the_metrics_of_pairs(self, trained, config, llama_folder):
        pairs = trained(llama_folder, TRAINS)
        args = RankingDPOConfig(f"{pairs.args.output_dir}-ranking", **TINY | TRAINS)
        ranking = RankingDPOTrainer(llama_folder, args=args, train_dataset=preference_rows(12))
        ranking.train()
        rows = preference_rows(9, start=20)
        of_pairs, of_rankings = pairs.evaluate(rows), ranking.evaluate(rows)
        shared = of_pairs.keys() & of_rankings.keys()
        assert {"eval_kl_per_token", "eval_rewards/length_correlation", "eval_rewards/calibration_error"} <= shared
        assert {name for name in of_pairs if name not in shared} == set()
        for name in shared - {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}:
            assert of_rankings[name] == same(of_pairs[name]), name

    def test_a_cached_reference_has_no_tokens(self, trained, llama_folder, tmp_path):
        cached = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(tmp_path)}
        logged = trained(llama_folder, {"max_steps": 1} | cached).state.log_history[0]
        assert "kl_per_token" not in logged
        assert "logps/chosen_drift" in logged


class TestDistributions:
    def test_they_are_those_of_the_rewards_that_predict_returns(self, trained, llama_folder):
        sets = {"small": preference_rows(3, start=20), "large": preference_rows(9, start=30)}
        trainer = trained(llama_folder, EVALUATES, eval_dataset=sets)
        written = {line["name"]: line for line in lines(trainer, "distributions") if line["step"] == 4}
        for name, rows in sets.items():
            rewards = trainer.predict(rows).predictions
            for metric, values in {
                "rewards/chosen": rewards[:, 0],
                "rewards/rejected": rewards[:, 1],
                "rewards/margins": rewards[:, 0] - rewards[:, 1],
            }.items():
                line = written.pop(f"eval_{name}_{metric}")
                assert sum(line["counts"]) == len(rows)
                assert [line["edges"][0], line["edges"][-1]] == same([values.min(), values.max()])
            points = written.pop(f"eval_{name}_rewards/calibration")
            assert sum(points["counts"]) == len(rows)
            right = sum(n * share for n, share in zip(points["counts"], points["accuracy"], strict=True) if n)
            assert right == (rewards[:, 0] > rewards[:, 1]).sum()
        assert written == {}

    def test_they_reach_tensorboard(self, trained, llama_folder):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        rows = preference_rows(9, start=20)
        trainer = trained(
            llama_folder, EVALUATES | {"report_to": ["tensorboard"], "log_samples": 1}, eval_dataset=rows
        )
        folder = next(Path(trainer.args.output_dir, "runs").iterdir())
        events = EventAccumulator(str(folder), size_guidance={"histograms": 0}).Reload()
        margins = events.Histograms("eval/rewards/margins_distribution")
        scalars = events.Scalars("eval/rewards/margins")
        assert [entry.step for entry in margins] == [2, 4]
        for histogram, mean in zip(margins, scalars, strict=True):
            assert histogram.histogram_value.num == 9
            # TensorBoard keeps scalars in float32
            assert histogram.histogram_value.sum / 9 == pytest.approx(mean.value, rel=ROUNDING)
        assert "policy_reward" in str(events.Tensors("eval/samples/text_summary")[0].tensor_proto.string_val[0])


class TestSamples:
    @pytest.mark.parametrize("kind", ["copy", "lora"])
    def test_before_training_both_say_the_same_and_rewards_are_0(self, kind, config, llama_folder):
        args = config(log_samples=3, max_length=48)
        adapter = lora_config() if kind == "lora" else None
        trainer = DPOPaperTrainer(llama_folder, args=args, train_dataset=preference_rows(4), peft_config=adapter)
        rows = preference_rows(5, start=20)
        trainer.predict(rows)  # logs nothing
        trainer.evaluate(rows)
        samples = lines(trainer, "samples")
        assert len(samples) == 3
        for sample, prompt in zip(samples, rows["prompt"], strict=False):
            assert prompt.endswith(sample["prompt"])  # cut to its end
            assert sample["policy"] == sample["reference"]
            assert sample["policy_reward"] == sample["reference_reward"] == 0
            assert (sample["step"], sample["name"]) == (0, "eval")

    @pytest.mark.parametrize("kind", ["pairs", "rankings", "preferred_ft"])
    def test_rewards_are_those_of_the_samples(self, kind, tmp_path):
        rows = preference_rows(12)
        options = TINY | TRAINS | {"log_samples": 2, "max_length": 48}
        if kind == "pairs":
            trainer_class, args = DPOPaperTrainer, DPOPaperConfig(str(tmp_path), **options)
        elif kind == "rankings":
            trainer_class, args = RankingDPOTrainer, RankingDPOConfig(str(tmp_path), **options)
        else:
            trainer_class, args = PreferredFTTrainer, PreferredFTConfig(str(tmp_path), reference_free=False, **options)
        trainer = trainer_class(tiny_llama(), args=args, train_dataset=rows, processing_class=tiny_tokenizer())
        trainer.train()
        trainer.samples._text = lambda ids: ids  # tokens, which text need not give back
        trainer.evaluate(preference_rows(3, start=20))
        samples = lines(trainer, "samples")
        assert len(samples) == 2
        for sample in samples:
            for who in ("policy", "reference"):
                policy, reference = (
                    token_logps(model, sample["prompt"], sample[who]).sum()
                    for model in (trainer.model, trainer.ref_model)
                )
                assert sample[f"{who}_reward"] == same(0.1 * (policy - reference).item())
        assert samples[0]["policy"] != samples[0]["reference"]

    def test_a_streamed_evaluation_set(self, trained, llama_folder):
        # The first rows of the stream are answered, as those of the same rows in memory
        rows = preference_rows(5, start=20)
        options = EVALUATES | {"log_samples": 2, "accelerator_config": {"dispatch_batches": False}}
        held, streamed = (
            trained(llama_folder, options | {"folder": f"samples_{name}"}, eval_dataset=each)
            for name, each in {"held": rows, "streamed": rows.to_iterable_dataset()}.items()
        )
        assert lines(streamed, "samples") == lines(held, "samples") != []

    def test_they_are_the_first_samples_of_a_sampler(self, config, llama_folder):
        """Policy and reference have the random numbers of a prompt's index, and each answer ends with EOS."""
        rows, explicit = preference_rows(5, start=20), tiny_llama(1)
        args = config(log_samples=5, max_length=400, max_prompt_length=360)
        trainer = DPOPaperTrainer(llama_folder, explicit, args=args, train_dataset=preference_rows(4))
        trainer.samples._text = lambda ids: ids
        trainer.evaluate(rows)
        samples = lines(trainer, "samples")
        for who, model in (("policy", tiny_llama()), ("reference", tiny_llama(1))):
            sampler = Sampler(model, tiny_tokenizer(), max_new_tokens=40)
            assert [sample[who] for sample in samples] == [one.token_ids for [one] in sampler.sample(rows["prompt"])]
        assert {len(sample["policy"]) < 40 for sample in samples} == {True, False}

    @pytest.mark.parametrize(
        "options",
        [{}, {"disable_dropout": False, "train_sampling_strategy": "random"}],
        ids=["plain", "random_numbers"],
    )
    def test_training_is_the_same_with_and_without(self, options, trained, gpt2_folder):
        rows = preference_rows(5, start=20)
        runs = [
            trained(gpt2_folder, EVALUATES | options | {"log_samples": n, "folder": f"samples{n}"}, eval_dataset=rows)
            for n in (0, 3)
        ]
        assert len(lines(runs[1], "samples")) == 6
        for one, other in zip(*(run.model.state_dict().values() for run in runs), strict=True):
            assert torch.equal(one, other)

    def test_gradient_checkpointing_keeps_its_options(self, trained, llama_folder):
        """Without a reference, whose forward pass would set them again."""
        reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
        trainer = trained(
            llama_folder,
            EVALUATES | reentrant | {"log_samples": 1, "reference_free": True},
            eval_dataset=preference_rows(2, start=20),
        )
        layers = trainer.model.model.layers
        assert all(layer.gradient_checkpointing for layer in layers)
        options = [layer._gradient_checkpointing_func.keywords for layer in layers]
        assert options == [{"use_reentrant": True}] * len(layers)

    def test_without_a_reference_the_policy_answers_alone(self, config, llama_folder):
        args = config(log_samples=2, reference_free=True, max_length=48)
        trainer = DPOPaperTrainer(llama_folder, args=args, train_dataset=preference_rows(4))
        trainer.evaluate(preference_rows(5, start=20))
        assert lines(trainer, "samples")[0].keys() == {"step", "name", "prompt", "policy", "policy_reward"}

    def test_a_reference_that_is_not_in_memory_cannot_answer(self, config, tmp_path):
        args = config(log_samples=2, precompute_ref_log_probs=True, ref_logps_cache_dir=str(tmp_path))
        with pytest.raises(ValueError, match="log_samples=2.*policy at the start, cached.*precompute_ref_log_probs"):
            DPOPaperTrainer(
                tiny_llama(), args=args, train_dataset=preference_rows(4), processing_class=tiny_tokenizer()
            )

    def test_a_number_below_0(self, config):
        with pytest.raises(ValueError, match="`log_samples=-1` must be at least 0"):
            config(log_samples=-1)


class TestDisplacement:
    def test_one_warning_when_the_preferred_fall_for_long(self):
        watch = DisplacementWatch()
        warnings = [watch.add(-0.5 * step, -float(step)) for step in range(1, 30)]
        said = [number for number, warning in enumerate(warnings, start=1) if warning]
        assert said == [10]
        assert "5 nats lower" in warnings[9] and "rejected answers: 10" in warnings[9]

    @pytest.mark.parametrize(
        "drifts",
        [
            [-0.5] * 9 + [0.1] + [-5.0] * 9,  # it rose in between
            [-0.05 * step for step in range(19)],  # less than a nat
            [-20.0 + step for step in range(19)],  # it comes back
            [float(step) for step in range(19)],
        ],
        ids=["interrupted", "small", "returns", "rises"],
    )
    def test_otherwise_none(self, drifts):
        watch = DisplacementWatch()
        assert [watch.add(drift, drift) for drift in drifts] == [None] * len(drifts)

    def test_a_run_says_it(self, config, llama_folder, caplog):
        class MakesAllLessLikely(DPOPaperTrainer):
            def losses(self, policy_logps, ref_logps):
                return policy_logps.mean(dim=1)

        args = config(max_steps=14, num_train_epochs=10)
        trainer = MakesAllLessLikely(llama_folder, args=args, train_dataset=preference_rows(12))
        with caplog.at_level(logging.WARNING):
            trainer.train()
        assert trainer.state.log_history[-2]["logps/chosen_drift"] < -1
        assert caplog.text.count("Likelihood displacement") == 1
