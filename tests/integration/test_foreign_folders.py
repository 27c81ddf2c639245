"""Folders that others wrote: code that nobody asked to run, state files that are none, adapters whose base is gone."""

import json
import pickle
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from tiny import preference_rows, save_tiny, tiny_llama, tiny_tokenizer

from trl_dpo_ext.cli import main


TOKEN = "hf_" + "a1" * 12
CODE = "raise SystemExit('the code was run')\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny(tiny_llama(), tiny_tokenizer(), "model")
    preference_rows(4).to_json("rows.jsonl")
    return tmp_path


def words(model: str, *more: str) -> list[str]:
    given = f"dpo --model_name_or_path {model} --dataset_name rows.jsonl --output_dir out --use_cpu true"
    return [*f"{given} --per_device_train_batch_size 4 --global_batch_size 4 --max_steps 1".split(), *more]


COMMANDS = {
    "train": words("own"),
    "dry_run": words("own", "--dry_run"),
    "doctor": ["doctor", "rows.jsonl", "--tokenizer", "own"],
    "score": "score own rows.jsonl --output scored.jsonl --reference model --beta 0.1".split(),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_code_of_a_tokenizer_is_never_asked_for(folder, command, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail(f"asked: {text}"))
    save_tiny(tiny_llama(), tiny_tokenizer(), "own")
    path = Path("own/tokenizer_config.json")
    own = {"auto_map": {"AutoTokenizer": ["code.Own", None]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    Path("own/code.py").write_text(CODE)
    assert main(COMMANDS[command]) == 2
    said = capsys.readouterr().err
    assert f"trl-dpo-ext {COMMANDS[command][0]}: own comes with code of its own, which has not been run." in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"beta": 0.1}), "is not JSON: "),
        (b"[" * 100_000, "is not JSON: maximum recursion depth"),
        (b"[]", ": its content is not a mapping."),
        (b'{"mixed_precision": ["no"]}', ": `mixed_precision=['no']` is not valid."),
        (b'{"quantization_config": "x"}', ": `quantization_config='x'` is not valid."),
        (
            b'{"quantization_config": {"quant_method": "x"}}',
            ": `quantization_config={'quant_method': 'x'}` is not valid",
        ),
        (b'{"reference": [1]}', ": `reference` is not a mapping."),
        (b'{"reference": {"kind": 3}}', ": `kind=3` in `reference` is not valid."),
        (b'{"beta": NaN}', ": `beta=nan` is not valid."),
        (b'{"dtype": "load"}', ": `dtype='load'` is not valid."),
        (b'{"max_length": 1.5}', ": `max_length=1.5` is not valid."),
    ],
    ids=range(11),
)
def test_state_files(folder, content, message, capsys):
    Path("model/trl_dpo_ext.json").write_bytes(content)
    assert main("score model rows.jsonl --output scored.jsonl --reference model --beta 0.1".split()) == 2
    said = capsys.readouterr().err
    assert f"trl-dpo-ext score: model/trl_dpo_ext.json{' ' * (message[0] != ':')}{message}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": "/no/such/model"}, "was trained on the model in /no/such/model, "),
        ({"base_model_name_or_path": None}, "`base_model_name_or_path`"),
        ({"peft_type": "X"}, "adapter/adapter_config.json has no `peft_type` that PEFT supports."),
        ({"base_model_name_or_path": 3}, "has no `base_model_name_or_path` that PEFT supports."),
    ],
    ids=["moved", "in-memory", "kind", "number"],
)
def test_adapters(folder, changes, message, capsys):
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(tiny_llama().from_pretrained("model"), lora).save_pretrained("adapter")
    tiny_tokenizer().save_pretrained("adapter")
    assert main(words("adapter", "--adapter", "keep", "--dry_run")) == 0
    path = Path("adapter/adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for command in (
        words("adapter", "--adapter", "keep"),
        words("adapter", "--adapter", "merge", "--dry_run"),
        "score adapter rows.jsonl --output scored.jsonl --beta 0.1".split(),
    ):
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said


def test_no_secret_is_printed_or_written(folder, capsys):
    init = json.dumps({"token": "a-plain-word"})
    secret = ["--hub_token", TOKEN, "--model_init_kwargs", init, "--run_name", f"run {TOKEN}"]
    assert main(words("model", *secret, "--dry_run")) == 0
    assert main(words("model", *secret, "--save_steps", "1", "--report_to", "tensorboard")) == 0
    said = "".join(capsys.readouterr())
    assert "hub_token: <secret>" in said
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert len(list(folder.rglob("training_args.bin"))) == 2
    for secret in (TOKEN, "a-plain-word"):
        assert secret not in said
        assert not any(secret.encode() in content for content in written)


@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        ("", ["--lora_r", "8"], "`lora_r=8` has no effect without `use_peft=True`"),
        ("lora_r: 16\n", [], "`lora_r=16` has no effect without `use_peft=True`"),
        ("use_peft: false\nlora_alpha: 4\n", [], "`lora_alpha=4` has no effect without `use_peft=True`"),
        ("", ["--load_in_4bit", "true"], "`load_in_4bit=True` freezes the weights"),
        ("use_peft: true\nbnb_4bit_quant_type: fp4\n", [], "`bnb_4bit_quant_type` has no effect without"),
        ("datasets: x\n", [], "`datasets`: 'x' is not a list of mappings with a `path`."),
        ("datasets: [{path: x, splt: y}]\n", [], "`datasets`, entry 0, has `splt`, which does not exist."),
        ("loss_type: simpo\n", [], "`loss_type` in recipe.yaml: 'simpo' does not exist. Choose one of 'sigmoid'"),
        ("torch_dtype: float32\n", [], "there is no option `torch_dtype` in recipe.yaml. Did you mean `dtype`?"),
        ("beta: 0.1,\n", [], "YAML reads the comma as part of the value. "),
        ("beta: &a [*a]\n", [], "`beta` in recipe.yaml: "),
        ("", ["--attn_implementation", "flash_attention_2"], "needs flash-attn, which is not installed."),
        ("", ["--attn_implementation", "sdpaa"], "`attn_implementation='sdpaa'` does not exist. Did you mean 'sdpa'?"),
        ("", ["--report_to", "swanlab"], "`report_to='swanlab'` needs a package that is not installed"),
        ("hub_token: [hf_abcdefghijkl]\n", [], "`hub_token` in recipe.yaml: ['<secret>'] is a list"),
    ],
    ids=range(15),
)
def test_recipes_refused_before_anything_is_loaded(folder, recipe, more, message, capsys):
    Path("recipe.yaml").write_text(recipe or "seed: 1\n")
    assert main(words("no-model", "--dry_run", *more, "--config", "recipe.yaml")) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_the_command_line_switches_the_adapter_of_a_recipe_off(folder):
    Path("recipe.yaml").write_text("use_peft: true\nlora_r: 4\n")
    assert main(words("model", "--dry_run", "--use_peft", "false", "--config", "recipe.yaml")) == 0
