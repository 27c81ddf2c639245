"""What can be wrong with a training on the command line is one message, with the way out."""

import io
import json
import sys
import warnings
from pathlib import Path

import pytest
from integration.conftest import assert_fits
from tiny import preference_rows, save_tiny, tiny_llama, tiny_tokenizer
from versions import needs

from trl_dpo_ext import DPOPaperConfig
from trl_dpo_ext.cli import main
from trl_dpo_ext.cli.recipe import parse


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    save_tiny(tiny_llama(), tiny_tokenizer(), folder / "model")
    preference_rows(8).to_json(folder / "rows.jsonl")
    (folder / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": null}\n')
    (folder / "columns.jsonl").write_text(json.dumps({"prompt": "a", "chosen": " b", "rejcted": " c"}) + "\n")
    (folder / "broken.jsonl").write_text('{"prompt": "a", "chosen\n')
    return folder


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (
            {"dataset_name": "rws.jsonl"},
            ["`dataset_name`: /", "/rws.jsonl does not exist. Did you mean /", "/rows.jsonl?"],
        ),
        (
            {"dataset_name": "broken.jsonl"},
            [
                "`dataset_name`: /",
                "/broken.jsonl cannot be read: line 1 is not JSON: Invalid control character at at column 24.",
            ],
        ),
        ({"dataset_name": "bad.jsonl"}, ["`rejected` in row 0 of the train dataset is None"]),
        ({"dataset_name": "columns.jsonl"}, ["no column `rejected`", "Is it `rejcted`?"]),
        ({"model_name_or_path": "modle"}, ["There is no folder", "Did you mean", "/model?"]),
        ({"log_samples": "2"}, ["`log_samples=2` has no effect with `eval_strategy='no'`"]),
        ({"beta": "-1"}, ["`beta=-1.0` must be a finite number above 0"]),
        ({"bata": "1"}, ["there is no option `bata`. Did you mean `beta`?"]),
        (
            {"model_init_kwargs": '{"atn_implementation": "eager"}'},
            ["`model_init_kwargs` has `atn_implementation`, which LlamaForCausalLM does not accept. Leave it out."],
        ),
        (
            {"dataset_train_split": "trian"},
            ["`dataset_train_split`: /", "/rows.jsonl has no split `trian`, only train."],
        ),
    ],
    ids=lambda value: next(iter(value.items()))[1] if isinstance(value, dict) else "",
)
def test_one_message(options, messages, folder, capsys):
    given = {"model_name_or_path": "model", "dataset_name": "rows.jsonl", "output_dir": "out"} | options
    paths = ("model_name_or_path", "dataset_name", "output_dir")
    words = [
        word
        for name, value in given.items()
        for word in (f"--{name}", str(folder / value) if name in paths else value)
    ]
    assert main(["dpo", *words, "--use_cpu", "true", "--global_batch_size", "8"]) == 2
    said = capsys.readouterr().err
    assert said.count("trl-dpo-ext dpo: ") == 1
    for message in messages:
        assert message in said
    assert "Traceback" not in said


# Options that training cannot do without, for runs in the folder
GIVEN = {
    "model_name_or_path": "model",
    "dataset_name": "rows.jsonl",
    "output_dir": "out",
    "use_cpu": "true",
    "global_batch_size": "8",
}


def words_of(options: dict[str, str | None]) -> list[str]:
    """The words of a command; `None` leaves an option out."""
    given = {name: value for name, value in (GIVEN | options).items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", value)]


@pytest.fixture
def refused(folder, monkeypatch, capsys):
    """Runs `dpo` in the folder with options, and a recipe if there is one; returns the message."""
    monkeypatch.chdir(folder)

    def run(options: dict[str, str | None], recipe: str | None = None) -> str:
        words = words_of(options)
        if recipe is not None:
            Path("recipe.yaml").write_text(recipe)
            words += ["--config", "recipe.yaml"]
        assert main(["dpo", *words]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        _, _, message = said.err.partition("trl-dpo-ext dpo: ")
        return message

    return run


WRONG = {
    "learning_rate": ("fast", "'fast' is not a number."),
    "max_steps": ("4.5", "'4.5' is not a whole number."),
    "use_peft": ("maybe", "'maybe' is not true or false."),
    "eval_strategy": ("stepss", "'stepss' does not exist. Did you mean 'steps'?"),
    "preset": ("papr", "'papr' does not exist. Did you mean 'paper'?"),
    "optim": ("rmsprp", "'rmsprp' does not exist. Did you mean 'rmsprop'?"),
    "adapter": ("x", "'x' does not exist. Choose one of 'merge', 'keep'."),
}


@pytest.mark.parametrize("option", WRONG)
def test_a_wrong_value(refused, option):
    value, problem = WRONG[option]
    assert refused({option: value}) == f"`{option}`: {problem}\n"
    assert refused({}, f"{option}: {value}\n") == f"`{option}` in recipe.yaml: {problem}\n"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("max_steps: [4]", "`max_steps` in recipe.yaml: [4] is a list, ... one value."),
        ("beta: {a: 1}", "`beta` in recipe.yaml: {'a': 1} is a mapping, ... one value."),
        ("loss_type: {a: 1}", "`loss_type` in recipe.yaml: {'a': 1} is a mapping, ... a list."),
        (
            "eval_strategy: no",
            "`eval_strategy` in recipe.yaml: 'False' does not exist. Choose one of 'no', 'steps', 'epoch'. YAML reads "
            "no ... as false. ... 'no' ... quotes.",
        ),
        ("beta: 1\nmax_steps: [4", "recipe.yaml, line 2, is not YAML: expected ',' or ']', but got '<stream end>'."),
        ("lr: 1", "there is no option `lr` in recipe.yaml. Did you mean `learning_rate`?"),
        ("- beta", "recipe.yaml is not a YAML mapping of options to values."),
    ],
)
def test_a_wrong_recipe(refused, recipe, message):
    assert_fits(refused({}, recipe), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name_or_path": None}, "`model_name_or_path` is missing. ... name ... folder ..."),
        ({"dataset_name": None}, "the data comes from ... `dataset_name` or `datasets`; neither is given."),
        ({"config": "recpe.yml"}, "there is no recipe recpe.yml. Did you mean recipe.yml?"),
        ({"learning_rate": "-1"}, "`learning_rate=-1.0` must be a finite number above 0."),
        ({"learning_rate": "nan"}, "`learning_rate=nan` must be a finite number above 0."),
        ({"use_peft": "true", "lora_r": "0"}, "`lora_r=0` must be at least 1."),
        (
            {"test_split_size": "0.1"},
            "`test_split_size=0.1` has no effect with `dataset_name`, ... `datasets`. ... `dataset_test_split` ... "
            "`datasets`.",
        ),
        (
            {"model_name_or_path": "folder/of/modle"},
            "There is no folder folder/of/modle. Did you mean folder/of/model?",
        ),
        ({"lr": "1"}, "there is no option `lr`. Did you mean `learning_rate`?"),
        ({"epochs": "1"}, "there is no option `epochs`. Did you mean `num_train_epochs`?"),
        ({"batch-size": "1"}, "there is no option `batch-size`. Did you mean `global_batch_size`?"),
        ({"model": "1"}, "there is no option `model`. Did you mean `model_name_or_path`?"),
        ({"dataset": "1"}, "there is no option `dataset`. Did you mean `dataset_name`?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options(refused, options, message):
    Path("recipe.yml").touch()
    Path("folder/of/model").mkdir(parents=True, exist_ok=True)
    assert_fits(refused(options), message)


def test_an_option_without_its_value(capsys):
    assert main(["dpo", "--learning_rate"]) == 2
    assert capsys.readouterr().err == "trl-dpo-ext dpo: `learning_rate`: expected one argument.\n"


def test_a_misspelt_model_comes_before_what_the_hub_says(refused):
    assert refused({"model_name_or_path": "modle"}).startswith(
        "There is no folder modle. Did you mean model? As a name on the hub: "
    )


def test_an_output_folder_is_tried_before_the_model(refused):
    Path("no-model").mkdir(exist_ok=True)
    assert refused({"output_dir": "rows.jsonl", "model_name_or_path": "no-model"}).endswith(
        "`output_dir`: rows.jsonl cannot be created: File exists. Choose a folder with write access.\n"
    )


def test_no_split_of_a_file_to_evaluate_on(refused):
    assert refused({"eval_strategy": "epoch"}).endswith(
        "`dataset_test_split`: rows.jsonl has no split `test`, only train. Put `train.jsonl` and `test.jsonl` into a "
        "folder and pass the folder, or choose an existing split.\n"
    )


def test_an_adapter_that_is_kept_and_one_from_a_recipe(refused):
    Path("adapter").mkdir(exist_ok=True)
    Path("adapter/adapter_config.json").write_text("{}")
    message = refused({"model_name_or_path": "adapter", "adapter": "keep"}, "use_peft: true\n")
    assert_fits(message, "`adapter: keep` ... `use_peft` adds another ... Leave one ... `--use_peft false` ...")


@pytest.mark.parametrize(
    ("value", "start"), [("true", True), ("True", True), ("false", None), ("out/checkpoint-3", "out/checkpoint-3")]
)
def test_a_run_resumes_alike_from_words_and_from_a_recipe(folder, monkeypatch, value, start):
    monkeypatch.chdir(folder)
    Path("resume.yaml").write_text(f"resume_from_checkpoint: {value}\n")
    of_words = parse("dpo", DPOPaperConfig, words_of({"resume_from_checkpoint": value}))
    of_recipe = parse("dpo", DPOPaperConfig, [*words_of({}), "--config=resume.yaml"])
    assert of_words.args.resume_from_checkpoint == of_recipe.args.resume_from_checkpoint == start


def test_score_advises_options(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["score", "model", "rows.jsonl", "--output", "scored.jsonl"]) == 2
    assert capsys.readouterr().err.endswith(
        "trl-dpo-ext score: model does not record its reference. Pass --reference, the model that "
        "training started from, or --reference_free for rewards beta log pi(y|x).\n"
    )
    assert main(["score", "model", "rows.jsonl", "--output", "scored.jsonl", "--reference", "model"]) == 2
    assert capsys.readouterr().err.endswith("trl-dpo-ext score: model does not record its beta. Pass --beta.\n")


def test_a_command_that_is_near_none(capsys):
    assert main(["trainn"]) == 2
    assert capsys.readouterr().err.startswith("trl-dpo-ext: there is no command `trainn`.\n\nusage: trl-dpo-ext")


def test_help_begins_with_what_trl_does_not_have(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        main(["dpo", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: trl-dpo-ext dpo [--config RECIPE] [--OPTION VALUE ...]\n")
    flags = ["--config RECIPE", "--adapter {merge,keep}", "--dry_run", "--dataset_name"]
    places = [text.index(f"\n  {flag}") for flag in flags]
    assert places == sorted(places)
    with pytest.raises(SystemExit, match="^0$"):
        main(["env", "--help"])
    assert capsys.readouterr().out.startswith("usage: trl-dpo-ext env [-h]\n")


class Pieces(io.StringIO):
    """A stream that keeps what it is given piece by piece, as the processes of a launch share one."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def test_a_message_is_one_piece(monkeypatch):
    stream = Pieces()
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["dpo", "--bata", "1"]) == 2
    assert stream.pieces == ["trl-dpo-ext dpo: there is no option `bata`. Did you mean `beta`?\n"]


@needs("transformers", "5.23", "it deprecates nothing that TRL uses")
def test_deprecations_of_the_libraries_are_silent_in_commands_only(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["dpo", *words_of({"gradient_checkpointing": "true", "learning_rate": "-1"})]) == 2
    assert "`learning_rate=-1.0`" in capsys.readouterr().err
    assert [str(each.message) for each in caught if each.category is FutureWarning] == []
    with pytest.warns(FutureWarning, match="`gradient_checkpointing` is deprecated"):
        DPOPaperConfig("out", use_cpu=True, gradient_checkpointing=True)
