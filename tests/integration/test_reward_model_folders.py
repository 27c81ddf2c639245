"""`ImplicitRewardModel` from a folder that a trainer or itself saved: same scores, same reference, or an error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from closeness import same
from integration.conftest import TINY
from peft import PeftModel, PromptTuningConfig, get_peft_model
from tiny import lora_config, preference_rows, save_tiny, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_dpo_ext import DPOPaperTrainer, ImplicitRewardModel, PreferredFTConfig, PreferredFTTrainer
from trl_dpo_ext.reference.weights_hash import hash_weights


pytestmark = pytest.mark.usefixtures("float64")

ROWS = preference_rows(6, start=50)
ANSWERS = [[row["chosen"], row["rejected"]] for row in ROWS]


def scores(reward_model: ImplicitRewardModel) -> list[list[float]]:
    found: list[list[float]] = reward_model.score(ROWS["prompt"], ANSWERS)
    assert max(abs(value) for row in found for value in row) > 0.01
    return found


def saved(trainer: DPOPaperTrainer) -> str:
    trainer.save_model()
    return str(trainer.args.output_dir)


def predicted(trainer: DPOPaperTrainer) -> list[list[float]]:
    rewards: list[list[float]] = trainer.predict(ROWS).predictions.tolist()
    return rewards


def state_of(folder: str | Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(Path(folder, "trl_dpo_ext.json").read_text())
    return state


def assert_same(found: list[list[float]], expected: list[list[float]]) -> None:
    """
    For rewards that the trainer logs, in float64.

    Where the dtype is the point, a folder gives to the bit what `from_trainer` gives, and
    `test_implicit_reward_model.py` compares that with what is logged.
    """
    for row, of_row in zip(found, expected, strict=True):
        assert row == same(of_row)


class TestFolderOfATrainer:
    @pytest.mark.parametrize("folder", ["llama", "gpt2"])
    def test_full_fine_tuning(self, trained, tiny_folder, folder):
        options = {"beta": 0.3, "max_length": 40, "max_prompt_length": 22, "prompt_truncation_mode": "keep_start"}
        trainer = trained(tiny_folder(folder), options)
        reward_model = ImplicitRewardModel.from_pretrained(saved(trainer))
        assert_same(scores(reward_model), predicted(trainer))
        assert reward_model.beta == 0.3 and reward_model.row_options.max_prompt_length == 22
        state = state_of(trainer.args.output_dir)
        assert state["reference"]["model"] == tiny_folder(folder)
        assert state["dtype"] == state["reference"]["dtype"] == "float64" and state["mixed_precision"] == "no"

    @pytest.mark.float32
    def test_joint_tokenization_and_autocast(self, trained, llama_folder):
        trainer = trained(llama_folder, {"tokenization": "joint", "max_length": 40, "bf16": True})
        reward_model = ImplicitRewardModel.from_pretrained(saved(trainer))
        assert reward_model.mixed_precision == "bf16" and reward_model.policy.dtype == torch.float32
        assert scores(reward_model) == scores(ImplicitRewardModel.from_trainer(trainer))

    @pytest.mark.float32
    def test_bfloat16_weights(self, trained, llama_folder):
        # The reference is loaded as it was held, in bfloat16, from a folder in float32
        options = {"model_init_kwargs": {"dtype": "bfloat16"}, "learning_rate": 1e-2}
        trainer = trained(llama_folder, options)
        reward_model = ImplicitRewardModel.from_pretrained(saved(trainer))
        assert reward_model.policy.dtype == reward_model.reference.dtype == torch.bfloat16
        assert scores(reward_model) == scores(ImplicitRewardModel.from_trainer(trainer))

    @pytest.mark.float32
    def test_another_dtype_after_the_check(self, trained, llama_folder):
        folder = saved(trained(llama_folder))
        reward_model = ImplicitRewardModel.from_pretrained(folder, dtype="bfloat16")
        assert reward_model.policy.dtype == reward_model.reference.dtype == torch.bfloat16
        assert reward_model.policy.model.rotary_emb.inv_freq.dtype == torch.float32  # loaded, not cast
        models = [AutoModelForCausalLM.from_pretrained(name, dtype="bfloat16") for name in (folder, llama_folder)]
        by_hand = ImplicitRewardModel(*models, tiny_tokenizer(), beta=0.1, mixed_precision="no")
        assert scores(reward_model) == scores(by_hand)

    @pytest.mark.float32
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_adapter(self, trained, llama_folder, dtype):
        options = {"model_init_kwargs": {"dtype": dtype}, "learning_rate": 1e-2}
        trainer = trained(llama_folder, options, peft_config=lora_config())
        reward_model = ImplicitRewardModel.from_pretrained(saved(trainer))
        assert reward_model.reference is None and isinstance(reward_model.policy, PeftModel)
        assert scores(reward_model) == scores(ImplicitRewardModel.from_trainer(trainer))

    def test_prompt_learning_adapter(self, trained, llama_folder):
        config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
        trainer = trained(llama_folder, {"learning_rate": 1.0}, peft_config=config)
        assert_same(scores(ImplicitRewardModel.from_pretrained(saved(trainer))), predicted(trainer))

    def test_frozen_copy_of_an_adapter(self, trained, llama_folder):
        base = AutoModelForCausalLM.from_pretrained(llama_folder)
        trainer = trained(
            get_peft_model(base, lora_config(init_lora_weights=False)), processing_class=tiny_tokenizer()
        )
        reward_model = ImplicitRewardModel.from_pretrained(saved(trainer))
        assert set(reward_model.policy.peft_config) == {"default", "ref"}
        assert_same(scores(reward_model), predicted(trainer))

    @pytest.mark.float32
    def test_four_bit_base(self, trained, llama_folder):
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        options = {"learning_rate": 1e-2}
        trainer = trained(llama_folder, options, peft_config=lora_config(), quantization_config=quantization)
        reward_model = ImplicitRewardModel.from_pretrained(saved(trainer))
        assert reward_model.policy.config.quantization_config.bnb_4bit_quant_type == "nf4"
        adapter = [p.dtype for name, p in reward_model.policy.named_parameters() if "lora_" in name]
        assert set(adapter) == {torch.bfloat16}  # as TRL trains it
        assert scores(reward_model) == scores(ImplicitRewardModel.from_trainer(trainer))
        with pytest.raises(ValueError, match="has no effect on quantized weights"):
            ImplicitRewardModel.from_pretrained(trainer.args.output_dir, dtype="float32")

    @pytest.mark.float32
    def test_frozen_copy_on_a_four_bit_base(self, trained, llama_folder):
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        base = AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=quantization, dtype="float32")
        model = get_peft_model(base, lora_config(init_lora_weights=False))
        trainer = trained(model, {"learning_rate": 1e-2}, processing_class=tiny_tokenizer())
        reward_model = ImplicitRewardModel.from_pretrained(saved(trainer))
        assert scores(reward_model) == scores(ImplicitRewardModel.from_trainer(trainer))

    def test_adapter_with_an_explicit_reference(self, trained, llama_folder, tmp_path):
        other = save_tiny(tiny_llama(5), tiny_tokenizer(), tmp_path / "other")
        reference = AutoModelForCausalLM.from_pretrained(other)
        trainer = trained(llama_folder, ref_model=reference, peft_config=lora_config())
        reward_model = ImplicitRewardModel.from_pretrained(saved(trainer))
        assert reward_model.reference is not None
        assert_same(scores(reward_model), predicted(trainer))

    def test_cached_reference(self, trained, llama_folder, tmp_path):
        options = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(tmp_path / "cache")}
        live = trained(llama_folder)
        trainer = trained(llama_folder, options | {"folder": "cached"})
        assert_same(scores(ImplicitRewardModel.from_pretrained(saved(trainer))), predicted(live))

    def test_explicit_reference(self, trained, tiny_folder, llama_folder, tmp_path):
        other = save_tiny(tiny_llama(5), tiny_tokenizer(), tmp_path / "other")
        trainer = trained(llama_folder, ref_model=AutoModelForCausalLM.from_pretrained(other))
        folder = saved(trainer)
        assert_same(scores(ImplicitRewardModel.from_pretrained(folder)), predicted(trainer))
        assert state_of(folder)["reference"]["model"] == other

    def test_reference_free(self, trained, llama_folder):
        trainer = trained(llama_folder, {"reference_free": True})
        reward_model = ImplicitRewardModel.from_pretrained(saved(trainer))
        assert reward_model.reference_free and reward_model.reference is None
        assert_same(scores(reward_model), predicted(trainer))

    def test_checkpoint(self, trained, llama_folder):
        trainer = trained(llama_folder, {"save_strategy": "steps", "save_steps": 3})
        reward_model = ImplicitRewardModel.from_pretrained(f"{trainer.args.output_dir}/checkpoint-3")
        assert_same(scores(reward_model), predicted(trainer))

    def test_a_folder_without_weights(self, trained, llama_folder, tmp_path):
        with pytest.raises(ValueError, match=f"{tmp_path}.* neither a model nor an adapter.*`trainer.save_model"):
            ImplicitRewardModel.from_pretrained(tmp_path)
        trainer = trained(llama_folder, {"max_steps": 2, "save_strategy": "steps", "save_steps": 1})
        with pytest.raises(ValueError, match="neither a model nor an adapter.*Pass .*checkpoint-2"):
            ImplicitRewardModel.from_pretrained(trainer.args.output_dir)

    def test_preferred_ft_knows_no_reference(self, llama_folder, tmp_path):
        args = PreferredFTConfig(str(tmp_path / "sft"), **TINY | {"max_steps": 1})
        trainer = PreferredFTTrainer(model=llama_folder, args=args, train_dataset=preference_rows(8))
        trainer.train()
        trainer.save_model()
        reward_model = ImplicitRewardModel.from_pretrained(tmp_path / "sft", reference=llama_folder)
        assert not reward_model.reference_free
        scores(reward_model)


class TestReference:
    def test_changed_weights_are_refused(self, trained, tmp_path):
        start = save_tiny(tiny_llama(3), tiny_tokenizer(), tmp_path / "start")
        folder = saved(trained(start))
        save_tiny(tiny_llama(4), tiny_tokenizer(), start)
        with pytest.raises(ValueError, match=f"loaded from {start}, is not .*{folder}.*`check_reference=False`"):
            ImplicitRewardModel.from_pretrained(folder)

    def test_another_model_is_refused(self, trained, llama_folder, tmp_path):
        other = save_tiny(tiny_llama(4), tiny_tokenizer(), tmp_path / "other")
        trainer = trained(llama_folder)
        folder = saved(trainer)
        found, recorded = hash_weights(tiny_llama(4)), state_of(folder)["reference"]["hash"]
        with pytest.raises(ValueError, match=f"passed as `reference` is not .* hash {found}.* {recorded}"):
            ImplicitRewardModel.from_pretrained(folder, reference=other)
        unchecked = ImplicitRewardModel.from_pretrained(folder, reference=other, check_reference=False)
        expected = ImplicitRewardModel(trainer.model, tiny_llama(4), tiny_tokenizer(), beta=0.1)
        assert_same(scores(unchecked), scores(expected))

    def test_an_adapter_on_another_base_is_refused(self, trained, tmp_path):
        start = save_tiny(tiny_llama(3), tiny_tokenizer(), tmp_path / "start")
        folder = saved(trained(start, peft_config=lora_config()))
        save_tiny(tiny_llama(4), tiny_tokenizer(), start)
        with pytest.raises(ValueError, match=r"The reference \(adapter off\), loaded from"):
            ImplicitRewardModel.from_pretrained(folder)

    def test_a_folder_that_is_gone(self, trained, tmp_path):
        start = Path(save_tiny(tiny_llama(3), tiny_tokenizer(), tmp_path / "start"))
        trainer = trained(str(start))
        folder = saved(trainer)
        start.rename(tmp_path / "moved")
        with pytest.raises(ValueError, match="loaded from .*start.* Pass `reference=`"):
            ImplicitRewardModel.from_pretrained(folder)
        moved = ImplicitRewardModel.from_pretrained(folder, reference=tmp_path / "moved")
        assert_same(scores(moved), predicted(trainer))

    def test_a_model_built_in_memory_has_no_name(self, trained):
        trainer = trained(tiny_llama(3), processing_class=tiny_tokenizer())
        folder = saved(trainer)
        with pytest.raises(ValueError, match=f"{folder} .* its reference.* Pass `reference=`.*`reference_free=True`"):
            ImplicitRewardModel.from_pretrained(folder)
        given = ImplicitRewardModel.from_pretrained(folder, reference=tiny_llama(3))
        assert_same(scores(given), predicted(trainer))

    def test_a_reference_that_moved(self, trained, llama_folder, tmp_path):
        options = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
        trainer = trained(llama_folder, options)
        folder = saved(trainer)
        with pytest.raises(ValueError, match="`sync_ref_model=True`.*Pass `reference=`"):
            ImplicitRewardModel.from_pretrained(folder)
        ImplicitRewardModel.from_trainer(trainer).save_pretrained(tmp_path / "whole")
        assert_same(scores(ImplicitRewardModel.from_pretrained(tmp_path / "whole")), predicted(trainer))

    def test_a_file_of_an_earlier_version(self, trained, llama_folder):
        trainer = trained(llama_folder)
        folder = saved(trainer)
        state = state_of(folder)
        old = {name: state[name] for name in ("trainer", "beta", "tokenization", "max_length", "max_prompt_length")}
        old["reference"] = {name: state["reference"][name] for name in ("kind", "hash")}
        Path(folder, "trl_dpo_ext.json").write_text(json.dumps(old))
        with pytest.raises(ValueError, match="Pass `reference=`"):
            ImplicitRewardModel.from_pretrained(folder)
        assert_same(scores(ImplicitRewardModel.from_pretrained(folder, reference=llama_folder)), predicted(trainer))


class TestOtherFolders:
    def test_any_model_with_beta_and_reference(self, llama_folder, tmp_path):
        folder = save_tiny(tiny_llama(1), tiny_tokenizer(), tmp_path / "policy")
        with pytest.raises(ValueError, match="Pass `reference=`"):
            ImplicitRewardModel.from_pretrained(folder, beta=0.1)
        with pytest.raises(ValueError, match=f"{folder} .*beta.* Pass `beta=`"):
            ImplicitRewardModel.from_pretrained(folder, reference=llama_folder)
        loaded = ImplicitRewardModel.from_pretrained(folder, reference=llama_folder, beta=0.1, max_length=40)
        assert loaded.row_options.max_prompt_length == 20
        expected = ImplicitRewardModel(tiny_llama(1), tiny_llama(), tiny_tokenizer(), beta=0.1, max_length=40)
        assert scores(loaded) == scores(expected)

    def test_any_adapter_with_beta(self, llama_folder, tmp_path):
        torch.manual_seed(1)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(llama_folder), lora_config(init_lora_weights=False)
        )
        model.save_pretrained(tmp_path / "adapter")
        tiny_tokenizer().save_pretrained(tmp_path / "adapter")
        loaded = ImplicitRewardModel.from_pretrained(tmp_path / "adapter", beta=0.1)
        assert scores(loaded) == scores(ImplicitRewardModel(model, None, tiny_tokenizer(), beta=0.1))

    def test_options_in_place_of_the_trainings(self, trained, llama_folder):
        folder = saved(trained(llama_folder, {"max_length": 40, "max_prompt_length": 30}))
        longer = ImplicitRewardModel.from_pretrained(folder, max_length=200, beta=0.5, max_tokens_per_batch=99)
        assert (longer.row_options.max_prompt_length, longer.beta, longer.max_tokens_per_batch) == (100, 0.5, 99)
        joint = ImplicitRewardModel.from_pretrained(folder, tokenization="joint").row_options
        assert (joint.max_length, joint.max_prompt_length, joint.prompt_truncation_mode) == (40, None, None)
        with pytest.raises(ValueError, match="`reference` has no effect with `reference_free=True`"):
            ImplicitRewardModel.from_pretrained(folder, reference=llama_folder, reference_free=True)


@pytest.fixture(params=["full", "adapter", "frozen copy", "adapter and reference", "reference-free"])
def reward_model(request, llama_folder) -> ImplicitRewardModel:
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(llama_folder)
    options: dict[str, Any] = {"beta": 0.2, "max_length": 40, "mixed_precision": "no"}
    if request.param in ("full", "reference-free"):
        reference = tiny_llama(2) if request.param == "full" else None
        free = request.param != "full"
        return ImplicitRewardModel(tiny_llama(1), reference, tiny_tokenizer(), reference_free=free, **options)
    model = get_peft_model(base, lora_config(init_lora_weights=False))
    if request.param == "frozen copy":
        model.add_adapter("ref", lora_config(init_lora_weights=False))
    reference = tiny_llama(2) if request.param == "adapter and reference" else None
    return ImplicitRewardModel(model, reference, tiny_tokenizer(), **options)


class TestSave:
    def test_same_scores_to_the_bit(self, reward_model, tmp_path):
        reward_model.save_pretrained(tmp_path / "saved")
        loaded = ImplicitRewardModel.from_pretrained(tmp_path / "saved")
        assert scores(loaded) == scores(reward_model)
        assert (tmp_path / "saved" / "reference").is_dir() == (reward_model.reference is not None)
        # And again, from what was loaded
        loaded.save_pretrained(tmp_path / "again")
        assert scores(ImplicitRewardModel.from_pretrained(tmp_path / "again")) == scores(reward_model)

    @pytest.mark.float32
    def test_bfloat16_with_autocast(self, tmp_path):
        folders = [save_tiny(tiny_llama(seed), tiny_tokenizer(), tmp_path / f"{seed}") for seed in (1, 2)]
        models = [AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16") for folder in folders]
        reward_model = ImplicitRewardModel(*models, tiny_tokenizer(), beta=0.1, mixed_precision="bf16")
        reward_model.save_pretrained(tmp_path / "saved")
        assert scores(ImplicitRewardModel.from_pretrained(tmp_path / "saved")) == scores(reward_model)

    def test_without_the_reference(self, trained, llama_folder, tmp_path):
        reward_model = ImplicitRewardModel.from_pretrained(saved(trained(llama_folder)))
        reward_model.save_pretrained(tmp_path, save_reference=False)
        assert not (tmp_path / "reference").exists()
        assert scores(ImplicitRewardModel.from_pretrained(tmp_path)) == scores(reward_model)

    def test_a_changed_reference_is_refused(self, tmp_path):
        ImplicitRewardModel(tiny_llama(1), tiny_llama(2), tiny_tokenizer(), beta=0.1).save_pretrained(tmp_path)
        tiny_llama(3).save_pretrained(tmp_path / "reference")
        with pytest.raises(ValueError, match=f"is not .*{tmp_path}.* hash .*`check_reference=False`"):
            ImplicitRewardModel.from_pretrained(tmp_path)

    def test_what_cannot_be_saved(self, tmp_path):
        reward_model = ImplicitRewardModel(tiny_llama(1), tiny_llama(2), tiny_tokenizer(), beta=0.1)
        with pytest.raises(ValueError, match="`save_reference=False`.* or hub name.*reference"):
            reward_model.save_pretrained(tmp_path, save_reference=False)
        adapter = ImplicitRewardModel(get_peft_model(tiny_llama(), lora_config()), None, tiny_tokenizer(), beta=0.1)
        with pytest.raises(ValueError, match="base model was built in memory"):
            adapter.save_pretrained(tmp_path)
        free = ImplicitRewardModel(tiny_llama(), None, tiny_tokenizer(), beta=0.1, reference_free=True)
        with pytest.raises(ValueError, match="`save_reference=True` has no effect"):
            free.save_pretrained(tmp_path, save_reference=True)
        assert list(tmp_path.iterdir()) == []

    def test_push_to_hub(self, monkeypatch, tmp_path):
        # There is no hub here: its client copies the folder instead
        calls: dict[str, Any] = {}

        def create_repo(self: Any, repo_id: str, **kwargs: Any) -> huggingface_hub.RepoUrl:
            calls["create"] = (self.token, repo_id, kwargs)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/someone/{repo_id}")

        def upload_folder(self: Any, *, repo_id: str, folder_path: str, **kwargs: Any) -> str:
            calls["upload"] = (repo_id, kwargs)
            Path(folder_path).rename(tmp_path / "hub")
            Path(folder_path).mkdir()
            return "https://huggingface.co/commit"

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
        reward_model = ImplicitRewardModel(tiny_llama(1), tiny_llama(2), tiny_tokenizer(), beta=0.1)
        address = reward_model.push_to_hub("rewards", private=True, token="abc", commit_message="first")
        assert address == "https://huggingface.co/commit"
        assert calls["create"] == ("abc", "rewards", {"private": True, "exist_ok": True})
        assert calls["upload"] == ("someone/rewards", {"commit_message": "first"})
        assert scores(ImplicitRewardModel.from_pretrained(tmp_path / "hub")) == scores(reward_model)

    def test_from_the_hub(self, monkeypatch, tmp_path):
        ImplicitRewardModel(tiny_llama(1), tiny_llama(2), tiny_tokenizer(), beta=0.1).save_pretrained(tmp_path)
        asked: dict[str, Any] = {}

        def snapshot_download(name: str, **kwargs: Any) -> str:
            asked.update(kwargs, name=name)
            return str(tmp_path)

        monkeypatch.setattr("trl_dpo_ext.reward_model.policy_folder.snapshot_download", snapshot_download)
        loaded = ImplicitRewardModel.from_pretrained("someone/rewards", revision="v1")
        assert scores(loaded) == scores(ImplicitRewardModel.from_pretrained(tmp_path))
        assert (asked["name"], asked["revision"]) == ("someone/rewards", "v1")
        assert "*.bin" in asked["ignore_patterns"]  # no pickle


@pytest.fixture
def make(config: Callable[..., Any]) -> Callable[..., DPOPaperTrainer]:
    return lambda model, **options: DPOPaperTrainer(
        model=model, args=config(**options), train_dataset=preference_rows(8)
    )


def test_rewards_are_0_before_training(make, llama_folder):
    reward_model = ImplicitRewardModel.from_trainer(make(llama_folder))
    assert reward_model.score(ROWS["prompt"], ANSWERS) == [[0.0, 0.0]] * 6
