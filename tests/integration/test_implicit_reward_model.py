"""`ImplicitRewardModel`: its scores are the rewards that the trainers log, and those computed by hand from logits."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from closeness import EXACT, same
from datasets import Dataset
from integration.conftest import BFLOAT16_REWARD, TINY
from peft import PromptTuningConfig, get_peft_model
from tiny import MODELS, lora_config, preference_rows, ranking_rows, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import GRPOConfig, GRPOTrainer
from versions import needs

from trl_dpo_ext import DPOPaperTrainer, ImplicitRewardModel, RankingDPOConfig, RankingDPOTrainer
from trl_dpo_ext.data.conversion.to_pairs import all_pairs


pytestmark = pytest.mark.usefixtures("float64")

SIZES = (4, 2, 3)  # of rankings


def by_hand(policy: Any, reference: Any, rows: list[tuple[list[int], list[list[int]]]], beta: float) -> list:
    """Rewards of token ids with full logits, one sequence at a time, in plain torch and transformers."""

    @torch.no_grad()
    def logp(model: Any, prompt: list[int], completion: list[int]) -> float:
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids).logits.float()
        by_token = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]
        return by_token[len(prompt) - 1 :].double().sum().item()

    return [
        [beta * (logp(policy, prompt, ids) - (logp(reference, prompt, ids) if reference else 0.0)) for ids in answers]
        for prompt, answers in rows
    ]


def separate_ids(rows: Dataset, tokenizer: Any, bos: Sequence[int] = (), cut: tuple[int, int] | None = None) -> list:
    """Token ids as the paper's authors make and cut them, written down once more."""
    found = []
    for row in rows:
        prompt = list(bos) + tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        texts = row["completions"] if "completions" in row else [row["chosen"], row["rejected"]]
        answers = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        if cut is not None:
            most, most_of_prompt = cut
            longest = max(len(ids) for ids in answers)
            if len(prompt) + longest > most:
                if len(prompt) > most_of_prompt:
                    prompt = list(bos) + prompt[-(most_of_prompt - len(bos)) :]
                if len(prompt) + longest > most:
                    answers = [ids[: most - most_of_prompt] for ids in answers]
        found.append((prompt, answers))
    return found


def flat(rewards: Any) -> list[float]:
    return [value for row in rewards for value in row if value == value]  # a ranking's rewards are padded with NaN


def pairs(rewards: ImplicitRewardModel, rows: Dataset) -> list[list[float]]:
    return rewards.score(rows["prompt"], [[row["chosen"], row["rejected"]] for row in rows])


def assert_logged(trainer: Any, reward_model: ImplicitRewardModel, rows: Dataset, tolerance: float = EXACT) -> list:
    """`predict`, `evaluate` and the reward model agree on pairs; returns the rewards."""
    scores = pairs(reward_model, rows)
    assert flat(trainer.predict(rows).predictions) == pytest.approx(flat(scores), abs=tolerance)
    assert max(map(abs, flat(scores))) > 0.01  # there is something to agree on
    logged = trainer.evaluate(trainer.prepare(rows, trainer.processing_class, trainer.args, "eval")[0])
    for column, name in enumerate(("chosen", "rejected")):
        mean = sum(row[column] for row in scores) / len(scores)
        assert logged[f"eval_rewards/{name}"] == pytest.approx(mean, abs=tolerance)
    return scores


@pytest.fixture
def ranked(tmp_path) -> Callable[..., RankingDPOTrainer]:
    def run(model: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> RankingDPOTrainer:
        args = RankingDPOConfig(str(tmp_path / "out"), **TINY | (options or {}))
        trainer = RankingDPOTrainer(model=model, args=args, train_dataset=ranking_rows(12, SIZES), **kwargs)
        trainer.train()
        return trainer

    return run


@pytest.fixture
def toy() -> ImplicitRewardModel:
    """Two unlike models that nobody trained."""
    return ImplicitRewardModel(tiny_llama(1), tiny_llama(0), tiny_tokenizer(), beta=0.1)


class TestLoggedRewards:
    @pytest.mark.parametrize("model", ["llama", "gpt2"])
    def test_full_fine_tuning(self, trained, tiny_folder, model):
        trainer = trained(tiny_folder(model))
        rows = preference_rows(7, start=50)
        reward_model = ImplicitRewardModel(
            trainer.model, trainer.ref_model, trainer.processing_class, beta=trainer.beta
        )
        scores = assert_logged(trainer, reward_model, rows)
        reference = AutoModelForCausalLM.from_pretrained(tiny_folder(model)).eval()
        hand = by_hand(trainer.model.eval(), reference, separate_ids(rows, trainer.processing_class), 0.1)
        assert flat(scores) == same(flat(hand))

    def test_bos_token(self, trained, bos_folder):
        trainer = trained(bos_folder, {"beta": 0.3})
        rows, tokenizer = preference_rows(5, start=50), trainer.processing_class
        scores = assert_logged(trainer, ImplicitRewardModel.from_trainer(trainer), rows)
        reference = AutoModelForCausalLM.from_pretrained(bos_folder).eval()
        ids = separate_ids(rows, tokenizer, bos=[tokenizer.bos_token_id])
        assert flat(scores) == same(flat(by_hand(trainer.model.eval(), reference, ids, 0.3)))

    def test_adapter(self, trained, llama_folder):
        trainer = trained(llama_folder, peft_config=lora_config())
        rows = preference_rows(5, start=50)
        reward_model = ImplicitRewardModel(trainer.model, None, trainer.processing_class, beta=0.1)
        scores = assert_logged(trainer, reward_model, rows)
        reference = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
        hand = by_hand(trainer.model.eval(), reference, separate_ids(rows, trainer.processing_class), 0.1)
        assert flat(scores) == same(flat(hand))

    def test_frozen_copy_of_an_adapter(self, trained):
        model = get_peft_model(tiny_llama(), lora_config(init_lora_weights=False))
        trainer = trained(model, processing_class=tiny_tokenizer())
        rows = preference_rows(5, start=50)
        scores = assert_logged(trainer, ImplicitRewardModel.from_trainer(trainer), rows)
        ids = separate_ids(rows, trainer.processing_class)
        model.eval()
        # Apart, each adapter's own log-probabilities
        policy = by_hand(model, None, ids, 0.1)
        model.set_adapter("ref")
        reference = by_hand(model, None, ids, 0.1)
        hand = [a - b for a, b in zip(flat(policy), flat(reference), strict=True)]
        assert flat(scores) == same(hand)

    def test_prompt_learning_adapter(self, trained, llama_folder):
        config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
        trainer = trained(llama_folder, {"learning_rate": 1.0}, peft_config=config)
        assert_logged(trainer, ImplicitRewardModel.from_trainer(trainer), preference_rows(5, start=50))

    @pytest.mark.float32
    def test_four_bit_model(self, trained, llama_folder):
        trainer = trained(
            llama_folder,
            {"learning_rate": 1e-2},
            peft_config=lora_config(),
            quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        )
        # Its adapter is trained in bfloat16
        assert_logged(
            trainer, ImplicitRewardModel.from_trainer(trainer), preference_rows(5, start=50), BFLOAT16_REWARD
        )

    def test_chat(self, trained, llama_folder):
        trainer = trained(llama_folder, train_dataset=preference_rows(12, "chat"))
        rows, tokenizer = preference_rows(5, "chat", start=50), trainer.processing_class
        scores = assert_logged(trainer, ImplicitRewardModel.from_trainer(trainer), rows)
        ids = []
        for row in rows:
            prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
            whole = [
                tokenizer.apply_chat_template(row["prompt"] + row[name])["input_ids"]
                for name in ("chosen", "rejected")
            ]
            ids.append((prompt, [answer[len(prompt) :] for answer in whole]))
        reference = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
        assert flat(scores) == same(flat(by_hand(trainer.model.eval(), reference, ids, 0.1)))

    @pytest.mark.parametrize("kind", ["implicit", "implicit_chat", "tools", "template"])
    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    def test_other_rows(self, trained, llama_folder, kind, tokenization):
        trainer = trained(
            llama_folder, {"tokenization": tokenization, "max_steps": 2}, train_dataset=preference_rows(12, kind)
        )
        rows = preference_rows(5, kind, start=50)
        scored = ImplicitRewardModel.from_trainer(trainer).score_dataset(rows)
        expected = trainer.predict(rows).predictions
        assert scored["score_chosen"][:] == same(expected[:, 0].tolist())
        assert scored["score_rejected"][:] == same(expected[:, 1].tolist())

    def test_cut_rows(self, trained, llama_folder):
        trainer = trained(llama_folder, {"max_length": 40, "max_prompt_length": 24})
        rows = preference_rows(8, start=50)
        scores = assert_logged(trainer, ImplicitRewardModel.from_trainer(trainer), rows)
        whole, cut = (
            separate_ids(rows, trainer.processing_class),
            separate_ids(rows, trainer.processing_class, (), (40, 24)),
        )
        assert sum(a != b for a, b in zip(whole, cut, strict=True)) >= 3
        reference = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
        assert flat(scores) == same(flat(by_hand(trainer.model.eval(), reference, cut, 0.1)))

    @pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
    def test_trl_cut(self, trained, llama_folder, mode):
        options = {"tokenization": "joint", "max_length": 40, "truncation_mode": mode}
        trainer = trained(llama_folder, options)
        rows = preference_rows(8, start=50)
        scores = pairs(ImplicitRewardModel.from_trainer(trainer), rows)
        assert flat(trainer.predict(rows).predictions) == same(flat(scores))
        assert scores != pairs(ImplicitRewardModel.from_trainer(trainer, max_length=None), rows)

    @pytest.mark.parametrize(
        "options",
        [{}, {"max_length": 32, "max_prompt_length": 12}, {"tokenization": "joint", "max_length": 32}],
        ids=["whole", "separate", "joint"],
    )
    def test_rankings(self, ranked, llama_folder, options):
        trainer = ranked(llama_folder, options)
        rows, reward_model = ranking_rows(7, SIZES), ImplicitRewardModel.from_trainer(trainer)
        scores = reward_model.score(rows["prompt"], rows["completions"])
        assert [len(row) for row in scores] == [len(row) for row in rows["completions"]]
        assert flat(trainer.predict(rows).predictions) == same(flat(scores))
        if options.get("tokenization") != "joint":
            cut = (32, 12) if options else None
            ids = separate_ids(rows, trainer.processing_class, (), cut)
            reference = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
            assert flat(scores) == same(flat(by_hand(trainer.model.eval(), reference, ids, 0.1)))

    def test_reference_free(self, trained, llama_folder):
        trainer = trained(llama_folder, {"reference_free": True})
        rows = preference_rows(5, start=50)
        scores = assert_logged(trainer, ImplicitRewardModel.from_trainer(trainer), rows)
        hand = by_hand(trainer.model.eval(), None, separate_ids(rows, trainer.processing_class), 0.1)
        assert flat(scores) == same(flat(hand))

    @pytest.mark.float32
    def test_bfloat16_autocast(self, trained, llama_folder):
        trainer = trained(llama_folder, {"bf16": True})
        rows = preference_rows(6, start=50)
        assert_logged(trainer, ImplicitRewardModel.from_trainer(trainer), rows, BFLOAT16_REWARD)
        exact = ImplicitRewardModel.from_trainer(trainer, mixed_precision="no")
        plain = tiny_llama()  # without the autocast that the trainer has left on its model
        plain.load_state_dict(trainer.model.state_dict())
        reference = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
        without_autocast = ImplicitRewardModel(plain, reference, trainer.processing_class, beta=0.1)
        assert pairs(exact, rows) == pairs(without_autocast, rows)  # to the bit: the same operations in float32
        assert pairs(exact, rows) != pairs(ImplicitRewardModel.from_trainer(trainer), rows)

    @pytest.mark.float32
    @pytest.mark.parametrize("peft_config", [None, lora_config()], ids=["full", "adapter"])
    def test_bfloat16_weights(self, trained, llama_folder, peft_config):
        options = {"model_init_kwargs": {"dtype": "bfloat16"}, "learning_rate": 1e-2}
        trainer = trained(llama_folder, options, peft_config=peft_config)
        assert_logged(
            trainer, ImplicitRewardModel.from_trainer(trainer), preference_rows(5, start=50), BFLOAT16_REWARD
        )

    def test_cached_reference(self, trained, llama_folder, tmp_path):
        options = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(tmp_path / "cache")}
        rows = preference_rows(12)
        trainer = trained(llama_folder, options, train_dataset=rows, eval_dataset=rows)
        with pytest.raises(ValueError, match="no reference model in memory .*cached"):
            ImplicitRewardModel.from_trainer(trainer)
        reward_model = ImplicitRewardModel.from_trainer(
            trainer, reference=AutoModelForCausalLM.from_pretrained(llama_folder)
        )
        logged = trainer.evaluate()
        scores = pairs(reward_model, rows)
        assert logged["eval_rewards/chosen"] == same(sum(row[0] for row in scores) / 12)
        assert logged["eval_rewards/margins"] == same(sum(a - b for a, b in scores) / 12)


class TestScores:
    def test_neither_batch_nor_order_nor_neighbours_matter(self, toy):
        rows = ranking_rows(9, SIZES)
        prompts, completions = rows["prompt"][:], rows["completions"][:]
        whole = flat(toy.score(prompts, completions))
        for budget in (1, 60, 200):
            one = ImplicitRewardModel(
                toy.policy, toy.reference, toy.processing_class, beta=0.1, max_tokens_per_batch=budget
            )
            assert flat(one.score(prompts, completions)) == same(whole)
        turned = toy.score(prompts[::-1], completions[::-1])[::-1]
        assert flat(turned) == same(whole)
        alone = [toy.score([prompt], [texts])[0] for prompt, texts in zip(prompts, completions, strict=True)]
        assert flat(alone) == same(whole)
        # One completion a row, so that equal prompts come several times
        single = [(prompt, text) for prompt, texts in zip(prompts, completions, strict=True) for text in texts]
        assert toy.score(*zip(*single, strict=True)) == same(whole)

    @pytest.mark.parametrize(
        "model",
        [
            "mistral",
            pytest.param("gemma2", marks=needs("transformers", "5.23", "sdpa has no soft cap")),
            "moe",
            "qwen3",
        ],
    )
    def test_other_models(self, model):
        policy, reference, tokenizer = MODELS[model](1), MODELS[model](0), tiny_tokenizer()
        rows = ranking_rows(4, SIZES)
        scores = ImplicitRewardModel(policy, reference, tokenizer, beta=0.1).score(rows["prompt"], rows["completions"])
        hand = by_hand(policy, reference, separate_ids(rows, tokenizer), 0.1)
        assert flat(scores) == same(flat(hand))

    def test_a_router_whose_loss_is_on(self):
        policy, reference, tokenizer = MODELS["moe"](1), MODELS["moe"](0), tiny_tokenizer()
        rows = ranking_rows(4, SIZES)
        off = ImplicitRewardModel(policy, reference, tokenizer, beta=0.1).score(rows["prompt"], rows["completions"])
        policy.config.output_router_logits = True
        on = ImplicitRewardModel(policy, reference, tokenizer, beta=0.1).score(rows["prompt"], rows["completions"])
        assert on == off

    def test_rewards_of_tokens_add_up(self, toy):
        rows = ranking_rows(5, SIZES)
        scores = toy.score(rows["prompt"], rows["completions"])
        by_token = toy.score_tokens(rows["prompt"], rows["completions"])
        for row, of_row, texts in zip(scores, by_token, rows["completions"], strict=True):
            for score, tokens, text in zip(row, of_row, texts, strict=True):
                assert sum(tokens.rewards) == same(score)
                assert len(tokens.tokens) == len(tokens.token_ids) == len(tokens.rewards)
                assert tokens.token_ids[-1] == toy.processing_class.eos_token_id
                assert toy.processing_class.decode(tokens.token_ids[:-1]) == text
        single = toy.score_tokens(rows["prompt"][:1], [rows["completions"][0][1]])
        assert single[0].rewards == same(by_token[0][1].rewards)

    def test_models_are_left_as_they_were(self, llama_folder):
        policy, reference = tiny_gpt2(1).train(), tiny_gpt2(0)
        policy.transformer.h[0].eval()
        tokenizer = tiny_tokenizer()
        prompt = tokenizer("The film was", return_tensors="pt")
        reference_output = reference(**prompt).logits
        modes = {name: module.training for name, module in policy.named_modules()}
        reward_model = ImplicitRewardModel(policy, reference, tokenizer, beta=0.1)
        first = reward_model.score(["The film was"] * 2, [" good.", " bad."])
        assert reward_model.score(["The film was"] * 2, [" good.", " bad."]) == first  # no dropout
        assert {name: module.training for name, module in policy.named_modules()} == modes
        assert "forward" not in vars(policy) and "forward" not in vars(reference)
        assert policy.config._attn_implementation == reference.config._attn_implementation == "sdpa"
        assert torch.equal(reference(**prompt).logits, reference_output)
        assert reference.generate(**prompt, max_new_tokens=3, do_sample=False).shape == (
            1,
            prompt["input_ids"].size(1) + 3,
        )
        policy(**prompt, labels=prompt["input_ids"]).loss.backward()  # trains on

    def test_training_goes_on_after_scoring(self, config, llama_folder):
        def weights(scores: bool) -> Any:
            trainer = DPOPaperTrainer(
                model=llama_folder,
                args=config(max_steps=2),
                train_dataset=preference_rows(12),
                peft_config=lora_config(),
            )
            if scores:
                ImplicitRewardModel.from_trainer(trainer).score(["The film was"], [" good."])
            trainer.train()
            return dict(trainer.model.named_parameters())

        with_scores, without = weights(True), weights(False)
        assert all(torch.equal(with_scores[name], without[name]) for name in without)
        assert {name: p.requires_grad for name, p in with_scores.items()} == {
            name: p.requires_grad for name, p in without.items()
        }

    def test_rank_and_best_of_n(self, toy, monkeypatch):
        known = {" a": 0.5, " b": 2.0, " c": -1.0, " d": 2.0}
        monkeypatch.setattr(
            toy, "score_rows", lambda rows, name="": [[known[t] for t in row["completions"]] for row in rows]
        )
        completions = [[" a", " b", " c", " d"], [" c", " a"], [" d"]]
        assert toy.rank(["x", "y", "z"], completions) == [[1, 3, 0, 2], [1, 0], [0]]
        best = toy.best_of_n(["x", "y", "z"], completions)
        assert [(one.index, one.completion, one.reward) for one in best] == [
            (1, " b", 2.0),
            (1, " a", 0.5),
            (0, " d", 2.0),
        ]

    def test_rank_is_the_order_of_the_scores(self, toy):
        rows = ranking_rows(4, SIZES)
        scores = toy.score(rows["prompt"], rows["completions"])
        for ranks, of_row, best in zip(
            toy.rank(rows["prompt"], rows["completions"]),
            scores,
            toy.best_of_n(rows["prompt"], rows["completions"]),
            strict=True,
        ):
            assert [of_row[place] for place in ranks] == sorted(of_row, reverse=True)
            assert best.index == ranks[0] and best.reward == same(max(of_row))


class TestDatasets:
    def test_scored_completions_train_a_ranking(self, toy, tmp_path):
        rows = ranking_rows(8, SIZES).add_column(
            "ranks", [[2, 0, 1, 3], [1, 0], [0, 1, 2]] * 2 + [[0, 1, 2, 3], [0, 1]]
        )
        scored = toy.score_dataset(rows.remove_columns("ranks"))
        expected = toy.score(rows["prompt"], rows["completions"])
        assert flat(scored["scores"]) == same(flat(expected))
        # Ranks in the rows change nothing, least of all the order
        assert flat(toy.score_dataset(rows)["scores"]) == same(flat(expected))
        best_first = [
            texts[max(range(len(row)), key=row.__getitem__)]
            for texts, row in zip(rows["completions"], expected, strict=True)
        ]
        args = RankingDPOConfig(str(tmp_path / "out"), **TINY | {"max_steps": 1})
        trainer = RankingDPOTrainer(
            model=tiny_llama(), args=args, train_dataset=scored, processing_class=tiny_tokenizer()
        )
        assert [row["completions"][0] for row in trainer.train_dataset] == best_first
        assert len(all_pairs(scored)) == sum(len(row) * (len(row) - 1) // 2 for row in expected)

    def test_one_completion_a_row(self, toy):
        rows = Dataset.from_list([{"prompt": "The film was", "completion": text} for text in (" good.", " bad.")])
        expected = toy.score(["The film was"] * 2, [" good.", " bad."])
        assert toy.score_dataset(rows)["score"][:] == same(expected)

    def test_relabelled_pairs(self, toy):
        rows = (
            preference_rows(8)
            .add_column("chosen_model", list("abcdefgh"))
            .add_column("rejected_model", list("ABCDEFGH"))
        )
        relabelled = toy.relabel(rows)
        scores = pairs(toy, rows)
        assert relabelled["swapped"][:] == [a < b for a, b in scores]
        assert 0 < sum(relabelled["swapped"]) < 8
        for old, new, (a, b) in zip(rows, relabelled, scores, strict=True):
            swapped = a < b
            assert (new["chosen"], new["rejected"]) == (
                (old["rejected"], old["chosen"]) if swapped else (old["chosen"], old["rejected"])
            )
            assert new["chosen_model"] == old["rejected_model" if swapped else "chosen_model"]
            assert new["score_chosen"] == same(max(a, b))
            assert new["score_rejected"] == same(min(a, b))
        assert toy.evaluate_preferences(relabelled).overall.accuracy == 1.0

    def test_agreement_with_preferences(self, toy):
        rows = preference_rows(7).add_column("subset", ["easy", "hard", "easy", "hard", "hard", "easy", "hard"])
        scores = pairs(toy, rows)
        right = [a > b for a, b in scores]
        report = toy.evaluate_preferences(rows)
        assert report.overall.count == 7 and report.overall.accuracy == sum(right) / 7
        assert report.overall.margin == same(sum(a - b for a, b in scores) / 7)
        easy, hard = [right[i] for i in (0, 2, 5)], [right[i] for i in (1, 3, 4, 6)]
        assert report.subsets["easy"].accuracy == sum(easy) / 3 and report.subsets["hard"].count == 4
        assert report.mean_over_subsets == pytest.approx((sum(easy) / 3 + sum(hard) / 4) / 2)
        assert toy.evaluate_preferences(rows.remove_columns("subset")).subsets == {}

    def test_accuracy_is_the_trainers(self, trained, llama_folder):
        rows = preference_rows(12)
        trainer = trained(llama_folder, eval_dataset=rows)
        report = ImplicitRewardModel.from_trainer(trainer).evaluate_preferences(rows)
        logged = trainer.evaluate()
        assert report.overall.accuracy == pytest.approx(logged["eval_rewards/accuracies"])
        assert report.overall.margin == same(logged["eval_rewards/margins"])


class TestRewardFunction:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["text", "chat"])
    def test_of_grpo(self, toy, llama_folder, tmp_path, kind):
        texts = [f"The film number {i} was" for i in range(8)]
        rows = [{"prompt": t if kind == "text" else [{"role": "user", "content": t}]} for t in texts]
        calls = []

        class Recording(ImplicitRewardModel):
            def __call__(self, prompts, completions, **kwargs):
                rewards = super().__call__(prompts, completions, **kwargs)
                calls.append((prompts, completions, rewards))
                return rewards

        reward_model = Recording(tiny_llama(1), tiny_llama(0), tiny_tokenizer(), beta=0.1)
        args = GRPOConfig(
            str(tmp_path / "out"),
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=6,
            max_steps=2,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
        )
        trainer = GRPOTrainer(
            model=llama_folder, reward_funcs=reward_model, args=args, train_dataset=Dataset.from_list(rows)
        )
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "rewards/implicit_reward/mean" in entry]
        assert len(log) == len(calls) == 2
        for entry, (prompts, completions, rewards) in zip(log, calls, strict=True):
            assert len(rewards) == 4
            assert toy.score(prompts, completions) == same(rewards)
            assert entry["rewards/implicit_reward/mean"] == same(sum(rewards) / 4)
