"""What a careless user is told of columns, rows and arguments: each error's type and text."""

import math
from typing import Any

import pytest
import transformers
import trl
from accelerate.logging import MultiProcessAdapter
from closeness import same
from datasets import Dataset, IterableDataset
from integration.conftest import TINY
from peft import get_peft_model
from tiny import lora_config, preference_rows, tiny_llama, tiny_processor, tiny_tokenizer, tiny_vlm
from unit.conftest import GOOD, SAME, says, stream

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer


def messages(role: str, content: Any, key: str = "content") -> list[dict[str, Any]]:
    return [{"role": role, key: content}]


CHAT = {
    "prompt": messages("user", "Is it good?"),
    "chosen": messages("assistant", "Yes."),
    "rejected": messages("assistant", "No."),
}


class TestColumns:
    @pytest.mark.parametrize(
        ("renamed", "parts"),
        [
            (
                {"chosen": "chosenn"},
                ("train dataset has no column `chosen`", "found prompt, chosenn, rejected", "`chosenn`"),
            ),
            (
                {"rejected": "reject"},
                ("no column `rejected`", "Is it `reject`? Rename it with `dataset.rename_column`"),
            ),
            ({"chosen": "Chosen"}, ("no column `chosen`", "Is it `Chosen`?")),
            (
                {"chosen": "chosen_response", "rejected": "rejected_response"},
                ("no column `chosen`", "Is it `chosen_response`?"),
            ),
            (
                {"prompt": "promt"},
                ("no column `prompt`, but one named `promt`", "`dataset.rename_column`, or remove it"),
            ),
            (
                {"chosen": "good", "rejected": "bad"},
                ("no column `chosen`", "needs `chosen`, `rejected`", "found prompt, good"),
            ),
        ],
        ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
    )
    def test_missing_or_misspelt(self, build, renamed, parts):
        with says(*parts):
            build(preference_rows(2).rename_columns(renamed))

    def test_a_prompt_of_another_name(self, build):
        # Without a `prompt` the common start of the answers is one: here there is none, and `question` goes unused
        with says("no column `prompt`", "`question`"):
            build(preference_rows(2).rename_column("prompt", "question"))

    def test_tokens_without_a_prompt(self, build):
        rows = Dataset.from_list([{"chosen_ids": [7, 2], "rejected_ids": [8, 2]}])
        with says("no column `prompt_ids`"):
            build(rows)

    @pytest.mark.parametrize("sets", ["eval", {"books": None}], ids=["one", "named"])
    def test_the_evaluation_set_is_named(self, build, sets):
        wrong = preference_rows(2).rename_column("chosen", "chosn")
        name = "eval" if sets == "eval" else "books"
        with says(f"The {name} dataset has no column `chosen`", "Is it `chosn`?"):
            build(preference_rows(2), eval_dataset=wrong if sets == "eval" else dict.fromkeys(sets, wrong))

    def test_rows_passed_to_evaluate_and_predict(self, build):
        trainer = build(preference_rows(2))
        wrong = preference_rows(2).rename_column("rejected", "rejcted")
        with says("The eval dataset has no column `rejected`"):
            trainer.evaluate(wrong)
        with says("The test dataset has no column `rejected`"):
            trainer.predict(wrong)

    def test_names_passed_to_evaluate(self, build):
        rows = preference_rows(2)
        for eval_dataset in (None, rows):
            with says("no evaluation set 'books'", "`eval_dataset` has no names"):
                build(rows, eval_dataset=eval_dataset).evaluate("books")
        trainer = build(rows, eval_dataset={"books": rows, "films": preference_rows(2, start=5)})
        with says("no evaluation set 'book'", "'books', 'films'"):
            trainer.evaluate("book")
        of_all = trainer.evaluate()
        for name in ("books", "films"):
            assert trainer.evaluate(name)["eval_logps/chosen"] == same(of_all[f"eval_{name}_logps/chosen"])

    @pytest.mark.parametrize("column", ["ref_chosen_logps", "ref_rejected_logps"])
    def test_one_reference_column(self, build, column):
        other = {"ref_chosen_logps": "ref_rejected_logps", "ref_rejected_logps": "ref_chosen_logps"}[column]
        with says(f"train dataset has the column `{column}` but not `{other}`. Bring both", "or neither"):
            build([GOOD | {column: -1.0}])


ROW_ERRORS = {
    "chosen is None": (
        GOOD | {"chosen": None},
        ("`chosen` in row 1 of the train dataset is None", "`dataset.filter`"),
    ),
    "rejected is None": (GOOD | {"rejected": None}, ("`rejected` in row 1 of the train dataset is None",)),
    "prompt is None": (GOOD | {"prompt": None}, ("`prompt` in row 1 of the train dataset is None",)),
    "empty prompt": (
        GOOD | {"prompt": ""},
        ("`prompt` in row 1 of the train", "adds no BOS", "Give every row a prompt"),
    ),
}

# Values that Arrow does not take beside text, so they come alone
KIND_ERRORS = {
    "list": (
        GOOD | {"chosen": ["a", "b"]},
        ("`chosen` in row 0", "a list with an entry of str", "For several ranked"),
    ),
    "list as prompt": (
        GOOD | {"prompt": ["a"]},
        ("`prompt` in row 0 of the train dataset is a list with an entry of str",),
    ),
    "number": (GOOD | {"chosen": 3}, ("`chosen` in row 0", "is of type int. Expected text, or a list of messages")),
    "dict": (GOOD | {"rejected": {"a": 1}}, ("`rejected` in row 0", "is of type dict")),
    "bool": (GOOD | {"chosen": True}, ("`chosen` in row 0", "is of type bool")),
    "message without role": (
        CHAT | {"chosen": [{"content": "Yes."}]},
        ("`chosen` in row 0", "keys ['content']", "`role`"),
    ),
    "text and messages": (
        CHAT | {"rejected": "No."},
        (
            "In row 0 of the train dataset",
            "`rejected` is text and `prompt` is messages",
            "Use one of the two",
        ),
    ),
    "text prompt": (CHAT | {"prompt": "Is it?"}, ("In row 0", "`prompt` is text and `chosen` is messages")),
    "misspelt content": (
        CHAT | {"chosen": messages("assistant", "Yes.", "contents")},
        ("`chosen` in row 0", "`content`"),
    ),
    "content is None": (CHAT | {"chosen": messages("assistant", None)}, ("`chosen` in row 0", "content")),
    "no turn in the prompt": (CHAT | {"prompt": []}, ("`prompt` in row 0", "is empty")),
}


def cases(table: dict[str, tuple]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("row", "parts"), table.values(), ids=table.keys())


class TestRows:
    @cases(ROW_ERRORS)
    def test_values(self, build, row, parts):
        with says(*parts):
            build([GOOD, row, GOOD])

    @cases(ROW_ERRORS)
    def test_values_in_a_stream(self, build, row, parts):
        trainer = build(stream(GOOD, row))
        with says(*parts):
            trainer.train()

    @cases(KIND_ERRORS)
    def test_kinds(self, build, row, parts):
        with says(*parts):
            build([row])

    @cases(ROW_ERRORS)
    def test_rows_are_numbered_as_the_user_passed_them(self, build, row, parts):
        # Row 0 is left out, which must not shift the others
        with says(*(part.replace("row 1", "row 2") for part in parts)):
            build([SAME, GOOD, row])

    def test_the_evaluation_set_is_named(self, build):
        with says("`chosen` in row 0 of the eval dataset is None"):
            build([GOOD], eval_dataset=Dataset.from_list([GOOD | {"chosen": None}]))

    def test_a_worker_s_message_arrives(self, build):
        with says("`chosen` in row 1 of the train dataset is None"):
            build([GOOD, GOOD | {"chosen": None}], {"dataset_num_proc": 2})

    @pytest.mark.parametrize(
        ("bad", "why"), [(SAME, "both answers are the same"), (GOOD | {"chosen": ""}, "an answer is empty")]
    )
    def test_no_usable_row(self, build, bad, why):
        with says("No row of the train dataset is usable", f"row 0, {why}", "two different answers"):
            build([bad, bad])
        with says("No row of the train dataset is usable", why):
            build(stream(bad)).train()

    def test_a_chat_template_that_cannot_render_a_row(self, build):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('No role tool.') }}{% endif %}"
            "{{ m.content }}{% endfor %}"
        )
        bad = CHAT | {"prompt": messages("tool", "Is it good?")}
        with says(
            "The chat template cannot render `prompt` in row 2 of the train dataset: No role tool.", "`dataset.filter`"
        ):
            build([CHAT | {"chosen": CHAT["rejected"]}, CHAT, bad], tokenizer=tokenizer)

    @pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
    def test_no_row_at_all(self, build, streaming):
        rows = IterableDataset.from_generator(lambda: iter([])) if streaming else preference_rows(1).select([])
        with says("train dataset"):
            build(rows).train()

    def test_no_row_in_the_evaluation_set(self, build):
        with says("eval dataset"):
            build([GOOD], eval_dataset=preference_rows(1).select([]))

    @pytest.mark.parametrize("name", ["prompt_ids", "chosen_ids", "rejected_ids"])
    @pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
    def test_empty_tokens(self, build, name, streaming):
        good = {"prompt_ids": [5], "chosen_ids": [7, 2], "rejected_ids": [8, 2]}
        rows = Dataset.from_list([good, good | {name: []}])
        with says(f"`{name}` in row 1 of the train dataset is empty"):
            build(rows.to_iterable_dataset() if streaming else rows).train()


class TestLength:
    def test_joint_names_the_first_row_that_is_left_out(self, build, caplog):
        build([GOOD, GOOD | {"prompt": "z" * 30}, GOOD], {"tokenization": "joint", "max_length": 20})
        assert "1 row" in caplog.text and "`max_length=20`" in caplog.text
        assert "row 1" in caplog.text

    def test_joint_without_room_for_any_answer(self, build):
        with says("`max_length=4`", "no answer is left. Raise it"):
            build([GOOD], {"tokenization": "joint", "max_length": 4})

    def test_cut_rows_are_reported_with_the_fix(self, build, caplog):
        build([GOOD, GOOD | {"prompt": "z" * 30}], {"max_length": 20}).train()
        assert "50.0% of the training rows are truncated (`max_length=20`, `max_prompt_length=10`)" in caplog.text
        assert "1 prompts and 0 answers truncated" in caplog.text and "drop long rows" in caplog.text

    def test_few_cut_rows_are_not_worth_a_warning(self, build, caplog):
        build([GOOD] * 100 + [GOOD | {"prompt": "z" * 30}], {"max_length": 20}).train()
        assert "are truncated" not in caplog.text


class TestTokenizer:
    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    def test_without_eos(self, build, tokenization):
        tokenizer = tiny_tokenizer()
        tokenizer.eos_token = None
        with says("tokenizer has no EOS token", "Set `tokenizer.eos_token`"):
            build([GOOD], {"tokenization": tokenization}, tokenizer=tokenizer)

    def test_chat_needs_none(self, build):
        tokenizer = tiny_tokenizer()
        tokenizer.eos_token = None
        assert len(build([CHAT], tokenizer=tokenizer).train_dataset) == 1


WITH_COLUMNS = GOOD | {"ref_chosen_logps": -20.0, "ref_rejected_logps": -15.0}


class TestReference:
    def test_the_model_as_its_own_reference(self, build):
        model = tiny_llama()
        with says("`model` and `ref_model` cannot be the same object", "omit `ref_model`"):
            build([GOOD], model=model, ref_model=model)

    def test_a_path_as_reference(self, build, llama_folder):
        with pytest.raises((TypeError, ValueError), match="`ref_model`"):
            build([GOOD], ref_model=llama_folder)

    def test_columns_and_a_model(self, build):
        with says("`ref_chosen_logps`", "`ref_model`", "Remove the columns", "leave `ref_model` out"):
            build([WITH_COLUMNS], ref_model=tiny_llama(seed=1))

    def test_columns_and_reference_free(self, build):
        with says("`ref_chosen_logps`", "`reference_free=True`", "Remove the columns"):
            build([WITH_COLUMNS], {"reference_free": True})

    def test_columns_and_a_reference_that_moves(self, build):
        # TRL's own text would name `precompute_ref_log_probs=True`, which nobody passed
        with says("`sync_ref_model=True`") as error:
            build([WITH_COLUMNS], {"sync_ref_model": True})
        assert "ref_chosen_logps" in str(error.value)

    def test_columns_in_one_set_only(self, build):
        for train, evaluation in (([WITH_COLUMNS], [GOOD]), ([GOOD], [WITH_COLUMNS])):
            with says("Some datasets have", "`ref_chosen_logps` and `ref_rejected_logps`", "`dataset.remove_columns`"):
                build(train, eval_dataset=Dataset.from_list(evaluation))

    @pytest.mark.parametrize("adapter", [None, lora_config()], ids=["full", "adapter"])
    def test_columns_and_rows_without_them_later(self, build, adapter):
        # Another reference, such as the model with its adapter off, would make the metrics incomparable
        trainer = build([WITH_COLUMNS], peft_config=adapter)
        for call in (trainer.evaluate, trainer.predict):
            with says("`ref_chosen_logps` and `ref_rejected_logps`", "the dataset's own log-probabilities"):
                call(Dataset.from_list([GOOD]))

    @pytest.mark.parametrize("value", [None, math.inf, math.nan])
    def test_columns_with_a_hole(self, build, value):
        with says("`ref_chosen_logps` in row 1 of the train dataset"):
            build([WITH_COLUMNS, WITH_COLUMNS | {"ref_chosen_logps": value}]).train()

    def test_reference_free_and_a_model(self, build):
        with says("`ref_model` has no effect with `reference_free=True`. Leave one of them out"):
            build([GOOD], {"reference_free": True}, ref_model=tiny_llama(seed=1))

    def test_reference_free_loads_no_second_model_for_images(self, build):
        # An instance without a folder: a second load could only fail
        trainer = build(
            preference_rows(4, "vision"), {"reference_free": True}, model=tiny_vlm(), tokenizer=tiny_processor()
        )
        assert trainer.ref_model is None

    @pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "PiSSA"])
    def test_an_adapter_that_takes_weights_from_the_base(self, build, init):
        with says(
            f"`init_lora_weights='{init}'` moves part of the base weights", "`ref_model=`", "`init_lora_weights=True`"
        ):
            build([GOOD], peft_config=lora_config(init_lora_weights=init))

    def test_such_an_adapter_with_its_reference(self, build):
        trainer = build([GOOD], peft_config=lora_config(init_lora_weights="pissa"), ref_model=tiny_llama())
        assert trainer.reference.description == "the model passed as `ref_model`"

    def test_a_foreign_adapter_of_the_reference_s_name(self, build):
        model = get_peft_model(tiny_llama(), lora_config())
        model.add_adapter("ref", lora_config())
        with says("adapter named `ref`", "`model.delete_adapter('ref')`", "another name"):
            build([GOOD], model=model)
        assert set(model.peft_config) == {"default", "ref"}  # untouched


class TestArguments:
    @pytest.mark.parametrize(
        ("args", "name"),
        [
            (transformers.TrainingArguments("out", use_cpu=True, report_to="none"), "TrainingArguments"),
            (trl.SFTConfig("out", use_cpu=True, report_to="none"), "SFTConfig"),
            ({"beta": 0.1}, "dict"),
            ("out", "str"),
            (DPOPaperConfig, "type"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_wrong_kind_of_config(self, args, name):
        with says(f"`{name}`", "`DPOPaperConfig` or a `trl.DPOConfig`", error=TypeError):
            DPOPaperTrainer(
                tiny_llama(), args=args, train_dataset=preference_rows(2), processing_class=tiny_tokenizer()
            )

    def test_dispatched_batches(self, tmp_path, monkeypatch):
        args = DPOPaperConfig(str(tmp_path), **TINY, accelerator_config={"dispatch_batches": True})
        monkeypatch.setattr(DPOPaperConfig, "world_size", 2)
        with says("`dispatch_batches=True`", "Leave it out of `accelerator_config`"):
            DPOPaperTrainer(tiny_llama(), args=args, train_dataset=preference_rows(2))

    @pytest.mark.parametrize("options", [{}, {"reference_free": True}], ids=str)
    def test_a_refused_call_leaves_the_config_as_it_was(self, tmp_path, options):
        args = DPOPaperConfig(str(tmp_path), **TINY, **options)
        before = dict(vars(args)) | {"logging_nan_inf_filter": False}
        with says("no column `chosen`"):
            DPOPaperTrainer(
                tiny_llama(),
                args=args,
                train_dataset=preference_rows(2).rename_column("chosen", "chosn"),
                processing_class=tiny_tokenizer(),
            )
        assert vars(args) == before

    @pytest.mark.parametrize("attention", ["flash_attention_2", "kernels-community/flash-attn2"])
    def test_flash_attention_in_float32(self, build, attention):
        model = tiny_llama()
        model.config._attn_implementation = attention
        with says(f"`attn_implementation='{attention}'` does not run in float32", "`bf16=True`", "'sdpa'"):
            build([GOOD], model=model)

    def test_flash_attention_in_bfloat16(self, build):
        model = tiny_llama()
        model.config._attn_implementation = "flash_attention_2"
        assert build([GOOD], {"bf16": True}, model=model).args.bf16

    def test_trl_s_config_is_told_where_the_paper_s_is(self, tmp_path, caplog):
        MultiProcessAdapter.warning_once.cache_clear()  # said once a process, and another test may have heard it
        args = trl.DPOConfig(str(tmp_path), use_cpu=True, report_to="none")
        DPOPaperTrainer(tiny_llama(), args=args, train_dataset=preference_rows(2), processing_class=tiny_tokenizer())
        assert "`DPOConfig` keeps TRL's values" in caplog.text and "`DPOPaperConfig`" in caplog.text
