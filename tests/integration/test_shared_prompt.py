"""The prompt computed once, rows packed, completions in parts: every run is the run with separate rows."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
import trl
from closeness import ROUNDING, assert_within_rounding, in_float64, same
from integration.conftest import BFLOAT16_LOGP, TINY, assert_same_run, updates
from peft import PromptTuningConfig
from tiny import (
    lora_config,
    preference_rows,
    ranking_rows,
    tiny_gpt2,
    tiny_llama,
    tiny_moe,
    tiny_processor,
    tiny_qwen3,
    tiny_tokenizer,
    tiny_vlm,
)
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer, RankingDPOConfig, RankingDPOTrainer
from trl_dpo_ext.shared_prompt import forward
from trl_dpo_ext.shared_prompt.attention import SDPA
from trl_dpo_ext.shared_prompt.forward import GroupedForward, LayoutOptions


pytestmark = pytest.mark.usefixtures("float64")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LORA = lora_config(target_modules=["q_proj", "v_proj", "down_proj"])


@pytest.fixture
def run(tmp_path):
    """Trains on pairs, or on rankings of two to five completions; one update unless told."""

    def train(model: Any = None, ranked: bool = False, **options: Any) -> DPOPaperTrainer | RankingDPOTrainer:
        names = ("peft_config", "train_dataset", "processing_class", "eval_dataset")
        arguments = {name: options.pop(name) for name in names if name in options}
        config, trainer_class = (RankingDPOConfig, RankingDPOTrainer) if ranked else (DPOPaperConfig, DPOPaperTrainer)
        rows = ranking_rows(8, [2, 5, 3, 4]) if ranked else preference_rows(8)
        arguments = {"train_dataset": rows, "processing_class": tiny_tokenizer()} | arguments
        args = config(str(tmp_path / "out"), **TINY | {"max_steps": 1} | options)
        trainer = trainer_class(model or tiny_llama(), args=args, **arguments)
        trainer.train()
        return trainer

    return train


class TestSameRun:
    @pytest.fixture(params=[False, True], ids=["pairs", "rankings"])
    def ranked(self, request):
        return request.param

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"padding_free": False},
            {"padding_free": True, "max_tokens_per_row": 100},
            {"share_prompt": False, "padding_free": True},
            {"completions_per_forward": 1},
            {"completions_per_forward": 2, "share_prompt": False},
            {"gradient_checkpointing": True},
            {"gradient_checkpointing": True, "completions_per_forward": 1},
            {"peft_config": LORA},
            {"peft_config": LORA, "gradient_checkpointing": True, "completions_per_forward": 1},
            {"precompute_ref_log_probs": True},
            {"peft_config": LORA, "precompute_ref_log_probs": True},
        ],
        ids=lambda options: (
            ", ".join(f"{k}={v}" if k != "peft_config" else "lora" for k, v in options.items()) or "default"
        ),
    )
    def test_as_with_separate_rows(self, run, ranked, options, tmp_path):
        if options.get("precompute_ref_log_probs"):
            options = options | {"ref_logps_cache_dir": str(tmp_path / "cache")}
        # A second update, since rewards are 0 in the first
        laid_out = run(ranked=ranked, max_steps=2, **options)
        separate = {k: v for k, v in options.items() if k in ("peft_config",)}
        assert_same_run(laid_out, run(ranked=ranked, max_steps=2, share_prompt=False, **separate))

    @pytest.mark.float32
    @pytest.mark.parametrize(("bf16", "seen"), [(False, 1.0001), (True, 1.5)], ids=["float32", "bf16"])
    def test_rounding(self, run, ranked, bf16, seen):
        """
        What two updates change is as near to float64 as with separate rows.

        With `seen` times the rate it is not.
        """

        def changes(**options: Any) -> dict[str, torch.Tensor]:
            # Not RMSprop, which makes whole steps of gradients that are rounding
            options = {"optim": "sgd", "learning_rate": 0.3, "bf16": bf16} | options
            trainer = run(ranked=ranked, max_steps=2, **options)
            start = dict(tiny_llama().named_parameters())
            return {name: weight.double() - start[name].double() for name, weight in trainer.model.named_parameters()}

        laid_out, separate, perturbed = changes(), changes(share_prompt=False), changes(learning_rate=0.3 * seen)
        with in_float64():
            exact = changes(share_prompt=False, bf16=False)
        assert_within_rounding(laid_out, separate, exact)
        with pytest.raises(AssertionError, match="from float64"):
            assert_within_rounding(perturbed, separate, exact)

    @pytest.mark.float32
    def test_rewards_in_bf16_start_at_0(self, run, ranked):
        first = updates(run(ranked=ranked, bf16=True))[0]
        separate = updates(run(ranked=ranked, bf16=True, share_prompt=False))[0]
        assert first["loss"] == pytest.approx(separate["loss"], rel=ROUNDING)
        for name in ("logps/chosen", "logps/rejected"):
            assert first[name] == pytest.approx(separate[name], abs=BFLOAT16_LOGP)

    def test_eager_attention(self, run, ranked):
        model = tiny_llama()
        model.set_attn_implementation("eager")
        trainer = run(model, ranked=ranked)
        assert str(trainer.runner) == "computed once (dense mask, packed)"
        assert_same_run(trainer, run(ranked=ranked, share_prompt=False))


@pytest.mark.parametrize(
    "loss_type", ["sigmoid", "hinge", "ipo", "robust", "exo_pair", "apo_zero", "sppo_hard", "sft"]
)
def test_losses_of_trl_run_on_the_layout(loss_type, tmp_path):
    options = {name: value for name, value in TINY.items() if name != "global_batch_size"}
    options |= {"loss_type": loss_type, "max_steps": 1, "label_smoothing": 0.1 if loss_type == "exo_pair" else 0.0}

    def first(trainer_class: type) -> dict[str, float]:
        args = trl.DPOConfig(str(tmp_path / "out"), bf16=False, **options)
        rows = preference_rows(8, tag=trainer_class.__name__)
        trainer = trainer_class(
            tiny_llama(), tiny_llama(seed=1), args=args, train_dataset=rows, processing_class=tiny_tokenizer()
        )
        trainer.train()
        assert "computed once" in str(getattr(trainer, "runner", "computed once"))
        return updates(trainer)[0]

    ours, theirs = first(DPOPaperTrainer), first(trl.DPOTrainer)
    for name in (
        "loss",
        "grad_norm",
        "rewards/chosen",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "entropy",
    ):
        assert ours[name] == same(theirs[name]), name


class TestWork:
    """What is computed, counted at the layers."""

    @staticmethod
    def calls(model: torch.nn.Module) -> list[int]:
        seen: list[int] = []
        # Before the forward: a recomputation stops as soon as it has what it needs
        model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0].size(1)))
        return seen

    def test_distinct_tokens_and_no_others(self, run):
        model = tiny_llama()
        seen = self.calls(model)
        rows = ranking_rows(4, [3])
        trainer = run(model, ranked=True, train_dataset=rows, reference_free=True)
        prepared = trainer.train_dataset
        distinct = sum(len(row["prompt_ids"]) + sum(len(ids) - 1 for ids in row["completion_ids"]) for row in prepared)
        assert seen == [distinct]

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_parts_are_computed_twice_and_not_three_times(self, run, checkpointing):
        model = tiny_llama()
        seen = self.calls(model)
        rows = ranking_rows(4, [6])
        options = {"reference_free": True, "gradient_checkpointing": checkpointing}
        run(model, ranked=True, train_dataset=rows, completions_per_forward=2, **options)
        assert len(seen) == 3 * 2
        whole = tiny_llama()
        counted = self.calls(whole)
        run(whole, ranked=True, train_dataset=rows, **options)
        assert max(seen) < counted[0] / 2

    @pytest.mark.parametrize("options", [{}, {"completions_per_forward": 2}], ids=["whole", "in parts"])
    def test_saved_tensors_may_be_offloaded(self, run, options):
        # TRL's `activation_offloading` needs an accelerator; torch's own hooks do the same on the CPU
        trainer = run(ranked=True, train_dataset=ranking_rows(4, [6]), **options)
        batch = trainer.data_collator([trainer.train_dataset[0]])
        trainer.model.train()

        def gradients() -> list[torch.Tensor]:
            trainer.model.zero_grad()
            trainer.compute_loss(trainer.model, dict(batch)).backward()
            return [p.grad.clone() for p in trainer.model.parameters()]

        expected = gradients()
        with torch.autograd.graph.save_on_cpu():
            found = gradients()
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))

    def test_no_graph_is_kept_of_a_part(self, run):
        kept: list[int] = []

        def count(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        def saved(size: int, **options: Any) -> int:
            rows = ranking_rows(4, [size])
            trainer = run(ranked=True, train_dataset=rows, reference_free=True, max_steps=1, **options)
            batch = trainer.data_collator([trainer.train_dataset[0]])
            trainer.model.train()
            kept.clear()
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                trainer.compute_loss(trainer.model, batch)
            return sum(kept)

        assert saved(8, completions_per_forward=2) < saved(2) / 4


def test_gradients_of_parts_are_added_in_place(run):
    """Each part adds to them when it is done: a sum over the parts would be a second copy of all of them."""
    added = Counter()
    model = tiny_llama()
    for name, weight in model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: added.update([name]))
    run(model, ranked=True, completions_per_forward=2, per_device_train_batch_size=4)
    # 2, 5, 3 and 4 completions, so three parts
    assert set(added) == {name for name, _ in model.named_parameters()}
    assert set(added.values()) == {3}


class TestWhereItIsNotExact:
    """Separate rows with a logged reason; an error where the option asks for the other."""

    def fallback(self, run, reason: str, model: Any = None, **options: Any) -> None:
        trainer = run(copy.deepcopy(model), **options)
        assert reason in str(trainer.runner)
        assert "computed once" not in str(trainer.runner)
        separate = run(copy.deepcopy(model), share_prompt=False, **options)
        assert updates(trainer)[0]["loss"] == same(updates(separate)[0]["loss"])
        for option in ("share_prompt", "padding_free"):
            with pytest.raises(ValueError, match=f"`{option}=True` is not exact here: "):
                run(model, **options | {option: True})

    def test_router_loss(self, run):
        self.fallback(run, "router", tiny_moe())

    def test_a_router_without_its_loss_shares(self, run):
        trainer = run(tiny_moe(), router_aux_loss_coef=0.0)
        assert "computed once" in str(trainer.runner)

    def test_prompt_learning(self, run):
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        self.fallback(run, "prompt-learning adapter", peft_config=config)

    def test_images(self, tmp_path):
        def make(**options):
            args = DPOPaperConfig(str(tmp_path / "out"), **TINY | {"max_steps": 1, "max_length": None} | options)
            rows = preference_rows(4, "vision")
            return DPOPaperTrainer(tiny_vlm(), args=args, train_dataset=rows, processing_class=tiny_processor())

        assert "images" in str(make().runner)
        with pytest.raises(ValueError, match="`share_prompt=True` is not exact here: rows hold images"):
            make(share_prompt=True)
        with pytest.raises(ValueError, match="`completions_per_forward=1` is not exact here: rows hold images"):
            make(completions_per_forward=1)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [({"disable_dropout": False}, "dropout is on in"), ({"neftune_noise_alpha": 5.0}, "NEFTune")],
        ids=["dropout", "neftune"],
    )
    def test_noise(self, run, options, reason):
        trainer = run(tiny_gpt2(), **options)
        assert reason in str(trainer.runner)
        with pytest.raises(ValueError, match=f"`share_prompt=True` is not exact here: .*{reason}"):
            run(tiny_gpt2(), share_prompt=True, **options)

    def test_compilation_is_not_asked_for_every_batch(self, tmp_path):
        def make(**options):
            args = DPOPaperConfig(str(tmp_path / "out"), **TINY | {"torch_compile": True} | options)
            rows = preference_rows(4)
            return DPOPaperTrainer(tiny_llama(), args=args, train_dataset=rows, processing_class=tiny_tokenizer())

        assert "would compile the layout of every batch anew" in str(make().runner)
        assert "computed once" in str(make(share_prompt=True).runner)

    @pytest.mark.parametrize("kind", ["bloom", "gpt_neo", "mpt", "qwen3_next", "rwkv"])
    def test_architectures(self, run, kind):
        options: dict[str, dict[str, Any]] = {
            "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
            "gpt_neo": {
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 4,
                "attention_types": [[["global", "local"], 1]],
            },
            "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
            "qwen3_next": {
                "hidden_size": 32,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "intermediate_size": 32,
                "num_experts": 2,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "router_aux_loss_coef": 0.0,
            },
            "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
        }
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=384, **options[kind]))
        trainer = run(copy.deepcopy(model))
        assert "computed once" not in str(trainer.runner)
        assert f"`{kind}`" in str(trainer.runner)
        for option in ("share_prompt", "padding_free"):
            with pytest.raises(ValueError, match=rf"`{option}=True` is not exact here: `{kind}`"):
                run(copy.deepcopy(model), **{option: True})

    def test_a_batch_with_more_than_text(self, run, tmp_path):
        args = DPOPaperConfig(str(tmp_path / "out"), **TINY | {"max_steps": 1})
        trainer = DPOPaperTrainer(
            tiny_llama(), args=args, train_dataset=preference_rows(8), processing_class=tiny_tokenizer()
        )
        collate = trainer.data_collator

        def with_positions(rows):
            batch = collate(rows)
            return batch | {"position_ids": torch.arange(batch["input_ids"].size(1)).expand_as(batch["input_ids"])}

        trainer.data_collator = with_positions
        trainer.train()
        assert updates(trainer)[0]["loss"] == same(updates(run())[0]["loss"])


class TestUntestedModels:
    """A model of no tested type is run both ways first."""

    @staticmethod
    def grouped(kind: str, options: LayoutOptions, **config: Any) -> GroupedForward:
        torch.manual_seed(0)
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 384,
            "initializer_range": 0.3,
        }
        sizes |= {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes | config)).eval()
        add_fused_lm_head(model)
        return GroupedForward(model, options, CPU)

    def test_one_that_agrees(self, run):
        made = self.grouped("arcee", LayoutOptions(longest=64))
        trainer = run(made.model)
        assert "computed once" in str(trainer.runner)

    def test_one_that_does_not(self, run):
        model = self.grouped("arcee", LayoutOptions()).model
        model.model.layers[0].mlp.register_forward_hook(  # reads the places of the row
            lambda mlp, args, output: output * torch.linspace(0.5, 1.0, 4096)[: output.size(1), None]
        )
        trainer = run(copy.deepcopy(model))
        assert "is not a tested model, and with one prompt for two completions its log-prob" in str(trainer.runner)
        with pytest.raises(ValueError, match="`share_prompt=True` is not exact here: `arcee` is not a tested model"):
            run(model, share_prompt=True)

    def test_only_rows_as_long_as_those_that_were_compared(self, run):
        short = run(self.grouped("arcee", LayoutOptions()).model, max_length=24, max_prompt_length=12)
        assert max(short.accelerator.unwrap_model(short.model).forward.options.longest, 24) == 24


class TestHowModelsAttend:
    def test_by_segments_on_the_cpu_and_by_mask_on_a_gpu(self):
        for device, expected in ((CPU, "segments"), (GPU, "dense")):
            model = tiny_llama()
            add_fused_lm_head(model)
            assert GroupedForward(model, LayoutOptions(), device).path == expected
            assert model.config._attn_implementation == SDPA[expected]

    def test_a_path_that_has_a_better_one_is_no_reason_to_warn(self, run, monkeypatch, caplog):
        """The line at the start says why it is not a better one; prompts are shared all the same."""
        monkeypatch.setattr(forward, "choose_path", lambda *_, **__: ("dense", "the GPU is old"))
        assert str(run().runner) == "computed once (dense mask, packed; the GPU is old)"
        assert "Every completion is run with its own prompt" not in caplog.text

    def test_flex_attention(self):
        model = tiny_llama()
        model.set_attn_implementation("flex_attention")
        add_fused_lm_head(model)
        assert GroupedForward(model, LayoutOptions(), CPU).path == "flex"

    @pytest.mark.float32
    def test_flash_attention_is_for_half_precision(self):
        model = tiny_llama()
        model.config._attn_implementation_internal = "flash_attention_2"
        add_fused_lm_head(model)
        grouped = GroupedForward(model, LayoutOptions(), GPU)
        assert "does not compute in float32; `bf16=True`" in str(grouped)
        with pytest.raises(ValueError, match="`share_prompt=True` is not exact here: .*`bf16=True`"):
            GroupedForward(model, LayoutOptions(share_prompt=True), GPU)

    def test_the_saved_model_knows_nothing_of_it(self, run, tmp_path):
        trainer = run(tiny_qwen3())
        trainer.save_model(str(tmp_path / "saved"))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert loaded.config._attn_implementation == "sdpa"
        assert SDPA["segments"] not in (tmp_path / "saved" / "config.json").read_text()

    def test_it_generates_as_before(self, run):
        trainer = run(learning_rate=1e-9)
        ids = torch.tensor([[5, 6, 7, 8]])
        options = {"max_new_tokens": 8, "do_sample": False}
        assert torch.equal(trainer.model.generate(ids, **options), tiny_llama().generate(ids, **options))

    def test_a_copy_is_a_model_of_its_own(self, run):
        trainer = run()
        copied = copy.deepcopy(trainer.model)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.zero_()
        logits = copied(
            input_ids=torch.tensor([[5, 6, 7]]), use_cache=False, labels=torch.tensor([[5, 6, 7]]), fused_lm_head=True
        )
        assert logits.log_probs.std() > 0.01

    def test_a_second_trainer_on_the_same_model(self, run):
        model = tiny_llama()
        once = updates(run(model, learning_rate=1e-15))[0]["logps/chosen"]
        again = updates(run(model, learning_rate=1e-15))[0]["logps/chosen"]
        assert again == same(once)


class TestLengths:
    @pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
    @pytest.mark.parametrize("ranked", [False, True], ids=["pairs", "rankings"])
    def test_lengths_are_there(self, run, ranked, strategy):
        trainer = run(ranked=ranked, train_sampling_strategy=strategy, max_steps=2)
        row = trainer.train_dataset[3]
        answers = row["completion_ids"] if ranked else [row["chosen_ids"], row["rejected_ids"]]
        assert row["length"] == len(row["prompt_ids"]) + sum(map(len, answers))
        assert len(updates(trainer)) == 2

    def test_batches_hold_rows_of_like_length(self, run):
        rows = preference_rows(64)
        trainer = run(train_dataset=rows, train_sampling_strategy="group_by_length")
        spreads = {}
        for strategy in ("group_by_length", "random"):
            trainer.args.train_sampling_strategy = strategy
            order = list(trainer._get_train_sampler())
            lengths = [[trainer.train_dataset[i]["length"] for i in order[at : at + 4]] for at in range(0, 64, 4)]
            spreads[strategy] = sum(max(batch) - min(batch) for batch in lengths)
        assert spreads["group_by_length"] < spreads["random"] / 2

    def test_predictions_come_in_the_order_of_the_rows(self, run):
        trainer = run(train_sampling_strategy="group_by_length", learning_rate=1e-2)
        rows = preference_rows(12, start=50)
        together = trainer.predict(rows).predictions
        for number in (0, 5, 11):
            alone = trainer.predict(rows.select([number])).predictions
            assert together[number] == same(alone[0])
