"""`PreferredFTTrainer`: runs against plain torch and against `trl.SFTTrainer`, and what it takes of its data."""

import pytest
import torch
import trl
from closeness import EXACT, same
from datasets import Dataset
from integration.conftest import TINY, assert_trains_as_plain_torch, builder, token_logps, updates
from tiny import lora_config, preference_rows, tiny_llama, tiny_tokenizer
from transformers import BitsAndBytesConfig

from trl_dpo_ext import PreferredFTConfig, PreferredFTTrainer
from trl_dpo_ext.objectives import preferred_ft_loss


pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def make(tmp_path):
    """Builds a trainer on 12 rows."""
    return builder(PreferredFTTrainer, tmp_path)


def test_objective():
    logps = torch.tensor([[-3.0, -1.0], [-5.0, -2.0]], requires_grad=True)
    losses = preferred_ft_loss(logps)
    losses.sum().backward()
    assert losses.tolist() == [3.0, 5.0]
    assert logps.grad.tolist() == [[-1.0, 0.0], [-1.0, 0.0]]
    with pytest.raises(ValueError, match=r"Expected `policy_logps` of shape \(B, K\)"):
        preferred_ft_loss(torch.zeros(3))


@pytest.mark.parametrize("reduction", ["sum", "token_mean"])
@pytest.mark.parametrize("per_device", [4, 2], ids=["whole", "accumulated"])
def test_a_run_is_plain_torch(make, reduction, per_device):
    options = {"optim": "sgd", "learning_rate": 1e-3, "max_grad_norm": 1.0, "per_device_train_batch_size": per_device}
    trainer = make(loss_reduction=reduction, **options)

    def loss_by_hand(model, batch):
        tokens = [token_logps(model, row["prompt_ids"], row["completion_ids"][0]) for row in batch]
        return -torch.cat(tokens).mean() if reduction == "token_mean" else -torch.cat(tokens).sum() / len(batch)

    assert_trains_as_plain_torch(trainer, loss_by_hand)


@pytest.mark.parametrize("per_device", [4, 2], ids=["whole", "accumulated"])
def test_token_mean_is_trl_s_sft(make, tmp_path, per_device):
    options = {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": 4 // per_device,
        "max_length": None,
        "optim": "adamw_torch",
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "num_train_epochs": 1,
    }
    shared = {name: value for name, value in TINY.items() if name not in ("global_batch_size", *options)}
    rows = preference_rows(12)
    ours = make(
        preset="trl", loss_reduction="token_mean", **options | {"global_batch_size": 4}, train_dataset=rows, bf16=False
    )
    ours.train()
    theirs = trl.SFTTrainer(
        tiny_llama(),
        args=trl.SFTConfig(str(tmp_path / "sft"), bf16=False, **shared, **options),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]),
        processing_class=tiny_tokenizer(),
    )
    theirs.train()
    assert len(updates(ours)) == len(updates(theirs)) == 3
    for one, two in zip(updates(ours), updates(theirs), strict=True):
        assert one["loss"] == same(two["loss"])
        assert one["grad_norm"] == same(two["grad_norm"])
    for (name, mine), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert (mine - other).norm() <= EXACT * other.norm(), name


class TestWork:
    def test_only_the_preferred_answer_is_run(self, make):
        model = tiny_llama()
        seen: list[int] = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0].size(1)))
        trainer = make(model, max_steps=1)
        trainer.train()
        rows = trainer.train_dataset.to_list()[:4]
        assert seen == [sum(len(row["prompt_ids"]) + len(row["completion_ids"][0]) - 1 for row in rows)]

    def test_a_reference_is_run_on_request(self, make):
        trainer = make(reference_free=False, max_steps=2)
        trainer.train()
        first, second = updates(trainer)
        assert first["rewards/chosen"] == 0.0 < second["rewards/chosen"]

    def test_none_by_default(self, make):
        trainer = make(max_steps=1)
        trainer.train()
        assert trainer.ref_model is None
        logged = updates(trainer)[0]
        assert logged["rewards/chosen"] == same(trainer.beta * logged["logps/chosen"])
        assert "rewards/rejected" not in logged


class TestData:
    def test_pairs(self, make):
        trainer = make()
        row = trainer.train_dataset[0]
        assert [tiny_tokenizer().decode(ids) for ids in row["completion_ids"]] == [
            preference_rows(1)[0]["chosen"] + tiny_tokenizer().eos_token
        ]

    @pytest.mark.parametrize(
        ("extra", "best"),
        [({}, 0), ({"ranks": [2, 0, 1]}, 1), ({"ranks": [1, 0, 0]}, 1), ({"scores": [0.5, 0.1, 0.9]}, 2)],
        ids=["in order", "ranks", "tied", "scores"],
    )
    def test_the_best_of_a_ranking(self, make, extra, best):
        rows = [{"prompt": f"Film {i} was", "completions": [" good.", " fine.", " dull."], **extra} for i in range(4)]
        trainer = make(train_dataset=Dataset.from_list(rows))
        for row in trainer.train_dataset:
            [ids] = row["completion_ids"]
            assert tiny_tokenizer().decode(ids, skip_special_tokens=True) == rows[0]["completions"][best]

    def test_each_is_cut_by_itself(self, make):
        # As the authors do for fine-tuning: the other answer's length does not matter
        rows = Dataset.from_list([{"prompt": "The film", "chosen": " was fine.", "rejected": " was dull" * 60}] * 4)
        trainer = make(train_dataset=rows, max_length=40)
        decoded = tiny_tokenizer().decode(trainer.train_dataset[0]["completion_ids"][0])
        assert decoded == " was fine." + tiny_tokenizer().eos_token

    def test_one_example_for_each_prompt(self, make):
        rows = [("A", " one"), ("B", " two"), ("A", " three"), ("C", " four"), ("B", " five")]
        data = Dataset.from_list([{"prompt": x, "chosen": y, "rejected": " no"} for x, y in rows])
        trainer = make(train_dataset=data, unique_prompts=True)
        tokenizer = tiny_tokenizer()
        kept = [
            (tokenizer.decode(row["prompt_ids"]), tokenizer.decode(row["completion_ids"][0], skip_special_tokens=True))
            for row in trainer.train_dataset
        ]
        assert kept == [("A", " three"), ("B", " five"), ("C", " four")]

    def test_the_same_answers_still_teach(self, make):
        data = Dataset.from_list([{"prompt": "A", "chosen": " one", "rejected": " one"}] * 4)
        assert len(make(train_dataset=data).train_dataset) == 4

    def test_empty_answers_are_left_out_and_counted(self, make):
        data = [{"prompt": "A", "chosen": " one", "rejected": " no"}] * 3 + [
            {"prompt": "B", "chosen": "", "rejected": " no"}
        ]
        trainer = make(train_dataset=Dataset.from_list(data))
        report = trainer.data_reports["train"]
        assert (report.rows, report.dropped) == (3, 1)
        assert report.first_dropped == "row 3, its best completion is empty"
        with pytest.raises(ValueError, match=r"No row of the train dataset is usable \(row 0, its best completion is"):
            make(train_dataset=Dataset.from_list(data[3:]))

    def test_bad_rows_have_their_number(self, make):
        data = preference_rows(6).to_list()
        data[4]["chosen"] = None
        with pytest.raises(ValueError, match="row 4 of the train dataset"):
            make(train_dataset=Dataset.from_list(data))

    @pytest.mark.parametrize("kind", ["chat", "implicit", "implicit_chat"])
    def test_other_formats(self, make, kind):
        trainer = make(train_dataset=preference_rows(8, kind), max_steps=1)
        trainer.train()
        assert updates(trainer)[0]["loss"] > 0

    def test_no_images(self, make):
        with pytest.raises(ValueError, match="`PreferredFTTrainer` .* images"):
            make(train_dataset=preference_rows(2, "vision"))

    def test_streams(self, make):
        straight, stream = make(), make(train_dataset=preference_rows(12).to_iterable_dataset(), max_steps=3)
        for trainer in (straight, stream):
            trainer.train()
        assert [entry["loss"] for entry in updates(stream)] == [entry["loss"] for entry in updates(straight)]
        with pytest.raises(ValueError, match="`unique_prompts=True` looks at all rows"):
            make(train_dataset=preference_rows(12).to_iterable_dataset(), max_steps=3, unique_prompts=True)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"loss_reduction": "mean"}, "`loss_reduction='mean'` does not exist"),
            ({"completions_per_forward": 1}, "`completions_per_forward=1` has no effect here"),
            ({"loss_type": "ipo"}, "has no effect on this objective"),
            ({"precompute_ref_log_probs": True}, "`precompute_ref_log_probs=True` has no effect with"),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            PreferredFTConfig("out", **TINY | options)


class TestSameNumbers:
    @pytest.mark.parametrize(
        "options",
        [
            {"per_device_train_batch_size": 1},
            {"share_prompt": False},
            {"gradient_checkpointing": True},
            {"train_sampling_strategy": "sequential", "padding_free": False},
        ],
        ids=["accumulated", "separate rows", "checkpointing", "a row each"],
    )
    @pytest.mark.parametrize("reduction", ["sum", "token_mean"])
    def test_as_straight(self, make, options, reduction):
        rows = preference_rows(10)  # the last update is short
        straight, other = (make(loss_reduction=reduction, train_dataset=rows, **some) for some in ({}, options))
        for trainer in (straight, other):
            trainer.train()
        assert len(updates(straight)) == len(updates(other)) == 3
        for one, two in zip(updates(straight), updates(other), strict=True):
            for name in ("loss", "grad_norm", "logps/chosen", "entropy"):
                assert two[name] == same(one[name]), name

    def test_resumed(self, make, tmp_path):
        straight = make(save_strategy="steps", save_steps=1)
        straight.train()
        resumed = make()
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
        for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_evaluation_and_prediction(self, make):
        rows = preference_rows(7, start=30)
        trainer = make(reference_free=False, eval_dataset=rows, learning_rate=1e-2)
        trainer.train()
        predictions = trainer.predict(rows).predictions
        assert predictions.shape == (7, 1)
        assert trainer.evaluate()["eval_rewards/chosen"] == same(predictions.mean())

    def test_cached_reference_is_the_live_one(self, make, tmp_path):
        cache = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(tmp_path / "cache")}
        live, cached = make(reference_free=False), make(reference_free=False, **cache)
        for trainer in (live, cached):
            trainer.train()
        for one, two in zip(updates(live), updates(cached), strict=True):
            assert two["rewards/chosen"] == same(one["rewards/chosen"])

    def test_lora(self, make):
        trainer = make(peft_config=lora_config(), reference_free=False, max_steps=2)
        trainer.train()
        assert updates(trainer)[0]["rewards/chosen"] == 0.0 < updates(trainer)[1]["rewards/chosen"]

    @pytest.mark.slow
    @pytest.mark.float32
    def test_quantized(self, make, llama_folder):
        quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        trainer = make(
            llama_folder, peft_config=lora_config(), quantization_config=quantized, max_steps=2, learning_rate=1e-2
        )
        trainer.train()
        first, second = updates(trainer)
        assert second["loss"] != first["loss"]
