"""From a base model to a DPO policy by the command line: stages, adapters between them, and wrong options."""

import json
from pathlib import Path

import pytest
import torch
from closeness import same
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from tiny import save_tiny, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_dpo_ext import ImplicitRewardModel
from trl_dpo_ext.cli import main


pytestmark = pytest.mark.usefixtures("float64")

LORA = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny base model and dialogues in the format of `Anthropic/hh-rlhf`."""
    save_tiny(tiny_llama(), tiny_tokenizer(), tmp_path / "base")
    rows = [
        {
            "chosen": f"\n\nHuman: What about film {i}?\n\nAssistant: It was a delight.",
            "rejected": f"\n\nHuman: What about film {i}?\n\nAssistant: It was dull, number {i}.",
        }
        for i in range(16)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, model: str, output: str, *options: str) -> int:
    """Two updates on the rows."""
    words = ["--model_name_or_path", model, "--dataset_name", "rows.jsonl", "--output_dir", output]
    words += ["--global_batch_size", "4", "--per_device_train_batch_size", "4", "--max_steps", "2", "--use_cpu"]
    words += ["--learning_rate", "1e-3", "--warmup_steps", "1", "--report_to", "none", "--save_strategy", "no"]
    words += ["--bf16", "false", "--logging_steps", "1"]
    return main([command, *words, *options])


def state_of(folder: str) -> dict:
    return json.loads((Path(folder) / "trl_dpo_ext.json").read_text())


class TestPipeline:
    def test_each_stage_starts_from_the_folder_of_the_one_before(self, base):
        assert run("preferred-ft", "base", "sft") == 0
        assert run("dpo", "sft", "policy") == 0
        assert state_of("sft")["trainer"] == "PreferredFTTrainer"
        assert state_of("sft")["reference"] == {"kind": "none", "hash": None}
        state = state_of("policy")
        assert state["trainer"] == "DPOPaperTrainer"
        assert state["reference"]["kind"] == "second load of the path"
        weights = [load_file(Path(folder) / "model.safetensors") for folder in ("base", "sft", "policy")]
        name = "model.layers.0.mlp.up_proj.weight"
        assert (weights[1][name] - weights[0][name]).norm() > 1e-3 < (weights[2][name] - weights[1][name]).norm()

    def test_the_reference_of_dpo_is_the_stage_before(self, base):
        # Two runs of stage 2 have one reference, whose hash is that of stage 1's weights and of no other's
        run("preferred-ft", "base", "sft")
        run("dpo", "sft", "one")
        run("unlikelihood", "sft", "two", "--reference_free", "false")
        run("dpo", "base", "other")
        hashes = [state_of(folder)["reference"]["hash"] for folder in ("one", "two", "other")]
        assert hashes[0] == hashes[1] != hashes[2]

    def test_a_merged_adapter(self, base):
        assert run("preferred-ft", "base", "sft", *LORA) == 0
        assert run("dpo", "sft", "policy", "--adapter", "merge") == 0
        assert (base / "policy" / "model.safetensors").is_file()
        assert state_of("policy")["reference"]["kind"] == "second load of the path"
        assert run("dpo", "sft", "again", "--adapter", "merge", *LORA) == 0
        assert (base / "again" / "adapter_model.safetensors").is_file()
        assert state_of("again")["reference"]["kind"] == "adapter off"
        # Both find the merged model that they are measured against; the adapter alone would name the unmerged one
        rows = [{"prompt": "Film 1 was", "completions": [" a delight.", " dull."]}]
        adapter = AutoPeftModelForCausalLM.from_pretrained("again").merge_and_unload()
        for folder, policy in {
            "policy": AutoModelForCausalLM.from_pretrained("policy"),
            "again": adapter,
        }.items():
            merged = AutoModelForCausalLM.from_pretrained(f"{folder}/merged")
            by_hand = ImplicitRewardModel(policy, merged, AutoTokenizer.from_pretrained(folder), beta=0.1)
            rewards = ImplicitRewardModel.from_pretrained(folder).score_rows(rows)[0]
            assert rewards == same(by_hand.score_rows(rows)[0])
            assert min(map(abs, rewards)) > 1e-4

    def test_an_adapter_is_on_all_linear_layers_by_default(self, base):
        assert run("dpo", "base", "all", "--use_peft") == 0
        assert run("dpo", "base", "trl", "--use_peft", "--preset", "trl") == 0
        everywhere, of_peft = (
            {
                name.split(".")[-1]
                for name in json.loads((base / folder / "adapter_config.json").read_text())["target_modules"]
            }
            for folder in ("all", "trl")
        )
        assert everywhere == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert of_peft == {"q_proj", "v_proj"}

    def test_a_yaml_of_trl_with_a_mixture_of_data_sets(self, base):
        mixture = {"datasets": [{"path": "json", "data_files": "rows.jsonl", "split": "train"}]}
        (base / "trl.yaml").write_text(json.dumps(mixture | {"model_name_or_path": "base", "output_dir": "mixed"}))
        options = ["--global_batch_size", "4", "--per_device_train_batch_size", "4", "--max_steps", "2", "--use_cpu"]
        options += ["--learning_rate", "1e-3", "--warmup_steps", "1", "--report_to", "none", "--save_strategy", "no"]
        assert main(["dpo", "--config", "trl.yaml", *options, "--bf16", "false"]) == 0
        assert run("dpo", "base", "named") == 0
        mixed, named = (load_file(base / folder / "model.safetensors") for folder in ("mixed", "named"))
        assert all(torch.equal(mixed[name], named[name]) for name in named)

    def test_an_adapter_that_is_kept(self, base):
        assert run("preferred-ft", "base", "sft", *LORA) == 0
        assert run("dpo", "sft", "policy", "--adapter", "keep") == 0
        assert state_of("policy")["reference"]["kind"] == "frozen copy of the adapter"
        before, after = (load_file(base / folder / "adapter_model.safetensors") for folder in ("sft", "policy"))
        assert before.keys() == after.keys()
        assert any((after[name] - before[name]).norm() > 1e-4 for name in before)

    def test_rankings(self, base):
        rows = [{"prompt": f"Film {i} was", "completions": [" good.", " fine.", " dull."]} for i in range(16)]
        (base / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert run("preferred-ft", "base", "sft") == 0
        assert run("rank", "sft", "policy", "--top_m", "1") == 0
        assert state_of("policy")["trainer"] == "RankingDPOTrainer"


class TestWrongOptions:
    @pytest.mark.parametrize(
        ("command", "options", "message"),
        [
            ("unlikelihood", ["--alfa", "1"], "there is no option `alfa`. Did you mean `alpha`?"),
            ("preferred-ft", ["--loss_reducton", "sum"], "Did you mean `loss_reduction`?"),
            ("rank", ["--alpha", "1"], "there is no option `alpha`."),
            ("dpo", ["--adapter", "merge"], "`adapter='merge'` has no effect: base has no LoRA adapter"),
        ],
    )
    def test_refused(self, base, capsys, command, options, message):
        assert run(command, "base", "out", *options) == 2
        assert message in capsys.readouterr().err

    def test_an_adapter_needs_a_word(self, base, capsys):
        run("preferred-ft", "base", "sft", *LORA)
        assert run("dpo", "sft", "policy") == 2
        assert "sft contains a LoRA adapter. Set `adapter: merge`" in capsys.readouterr().err
        assert run("dpo", "sft", "policy", "--adapter", "keep", *LORA) == 2
        assert "`use_peft` adds another" in capsys.readouterr().err

    def test_a_command_that_does_not_exist(self, capsys):
        assert main(["prefered-ft"]) == 2
        assert "Did you mean `preferred-ft`?" in capsys.readouterr().err
