"""What a careless user is told: each error's type and text, and that nothing was changed before it."""

import math
import re
from typing import Any

import pytest
import torch
import transformers
import trl
from accelerate.logging import MultiProcessAdapter
from datasets import Dataset, IterableDataset
from integration.conftest import TINY
from peft import LoraConfig, get_peft_model
from tiny import preference_rows, tiny_gpt2, tiny_llama, tiny_processor, tiny_tokenizer, tiny_vlm

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer


GOOD = {"prompt": "Is it good?", "chosen": " Yes.", "rejected": " No."}
SAME = GOOD | {"rejected": " Yes."}


def messages(role: str, content: Any, key: str = "content") -> list[dict[str, Any]]:
    return [{"role": role, key: content}]


CHAT = {
    "prompt": messages("user", "Is it good?"),
    "chosen": messages("assistant", "Yes."),
    "rejected": messages("assistant", "No."),
}


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)


@pytest.fixture
def build(tmp_path):
    """Builds a trainer of a tiny model on the given rows."""

    def make(rows, options=None, *, model=None, tokenizer=None, **kwargs) -> DPOPaperTrainer:
        return DPOPaperTrainer(
            model or tiny_llama(),
            args=DPOPaperConfig(str(tmp_path), **TINY | {"max_steps": 2} | (options or {})),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            processing_class=tokenizer or tiny_tokenizer(),
            **kwargs,
        )

    return make


def stream(*rows: dict[str, Any]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


def says(*parts: str, error: type[Exception] = ValueError):
    """An error whose text holds `parts` in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts)))


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
        assert "50.0% of the training rows are cut (`max_length=20`, `max_prompt_length=10`)" in caplog.text
        assert "1 prompts and 0 answers cut" in caplog.text and "drop long rows" in caplog.text

    def test_few_cut_rows_are_not_worth_a_warning(self, build, caplog):
        build([GOOD] * 100 + [GOOD | {"prompt": "z" * 30}], {"max_length": 20}).train()
        assert "are cut" not in caplog.text


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
        with says("brings reference log-probabilities, which `ref_model` contradicts", "Remove the columns"):
            build([WITH_COLUMNS], ref_model=tiny_llama(seed=1))

    def test_columns_and_reference_free(self, build):
        with says("brings reference log-probabilities, which `reference_free=True` contradicts"):
            build([WITH_COLUMNS], {"reference_free": True})

    def test_columns_and_a_reference_that_moves(self, build):
        # TRL's own text would name `precompute_ref_log_probs=True`, which nobody passed
        with says("`sync_ref_model=True`") as error:
            build([WITH_COLUMNS], {"sync_ref_model": True})
        assert "ref_chosen_logps" in str(error.value)

    def test_columns_in_one_set_only(self, build):
        for train, evaluation in (([WITH_COLUMNS], [GOOD]), ([GOOD], [WITH_COLUMNS])):
            with says("Some data sets bring `ref_chosen_logps` and `ref_rejected_logps` and some do not"):
                build(train, eval_dataset=Dataset.from_list(evaluation))

    @pytest.mark.parametrize("adapter", [None, lora()], ids=["full", "adapter"])
    def test_columns_and_rows_without_them_later(self, build, adapter):
        # Another reference, such as the model with its adapter off, would make the figures incomparable
        trainer = build([WITH_COLUMNS], peft_config=adapter)
        for call in (trainer.evaluate, trainer.predict):
            with says("`ref_chosen_logps` and `ref_rejected_logps`", "the data set's own log-probabilities"):
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
            build([GOOD], peft_config=lora(init_lora_weights=init))

    def test_such_an_adapter_with_its_reference(self, build):
        trainer = build([GOOD], peft_config=lora(init_lora_weights="pissa"), ref_model=tiny_llama())
        assert trainer.reference_description == "the model passed as `ref_model`"

    def test_a_foreign_adapter_of_the_reference_s_name(self, build):
        model = get_peft_model(tiny_llama(), lora())
        model.add_adapter("ref", lora())
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
        assert "`DPOConfig` keeps its values" in caplog.text and "`DPOPaperConfig`" in caplog.text


def weights(trainer: DPOPaperTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_no_update(trainer: DPOPaperTrainer, before: dict[str, torch.Tensor]) -> None:
    assert trainer.state.global_step == 0
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


class TestUpdates:
    def test_a_stream_that_ends_before_one_update(self, build):
        trainer = build(preference_rows(8).to_iterable_dataset(), {"global_batch_size": 64})
        with says("ended after 2 micro-batches; an update takes 16", "Lower `global_batch_size`", "stream more rows"):
            trainer.train()

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_weights_that_are_not_finite(self, build, accumulation):
        trainer = build(preference_rows(8), {"global_batch_size": 4 * accumulation})
        with torch.no_grad():
            trainer.model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
        before = weights(trainer)
        with says("Non-finite policy log-probabilities, losses in update 1, which has not been made", "Lower"):
            trainer.train()
        assert_no_update(trainer, before)

    def test_a_reference_that_is_not_finite(self, build):
        trainer = build(preference_rows(8), ref_model=tiny_llama(seed=1))
        with torch.no_grad():
            trainer.ref_model.lm_head.weight[0, 0] = math.nan
        before = weights(trainer)
        with says("Non-finite reference log-probabilities, losses in update 1"):
            trainer.train()
        assert_no_update(trainer, before)

    def test_a_later_update(self, build):
        class Poison(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, model, **kwargs):
                if state.global_step == 2:
                    model.lm_head.weight.data[0, 0] = math.inf

        trainer = build(preference_rows(16), {"max_steps": 4}, callbacks=[Poison()])
        with says("in update 3, which has not been made"):
            trainer.train()
        assert trainer.state.global_step == 2

    def test_a_loss_that_is_not_finite_is_not_filtered_away(self, build):
        assert build([GOOD]).args.logging_nan_inf_filter is False


class TestStart:
    """Rewards before the first update, which should be 0."""

    PART = "Implicit rewards before the first update should be 0, found up to"

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_wrong_reference(self, build, accumulation):
        trainer = build(preference_rows(8), {"global_batch_size": 4 * accumulation})
        with torch.no_grad():
            trainer.model.lm_head.weight.mul_(1.1)
        before = weights(trainer)
        with says(self.PART, "Cause: wrong reference (copy in memory)", "`ref_model=`"):
            trainer.train()
        assert_no_update(trainer, before)

    def test_the_largest_reward_is_named(self, build):
        trainer = build([GOOD])
        with torch.no_grad():
            trainer.model.lm_head.weight.mul_(1.1)
        rewards = trainer.predict(Dataset.from_list([GOOD])).predictions
        with pytest.raises(ValueError, match=f"found up to {abs(rewards).max():.3g}"):
            trainer.train()

    def test_an_adapter_that_does_not_start_at_zero(self, build):
        trainer = build(preference_rows(8), peft_config=lora(init_lora_weights=False))
        before = weights(trainer)
        with says(self.PART, "Cause: adapter initialisation", "`init_lora_weights=True`", "`ref_model=`"):
            trainer.train()
        assert_no_update(trainer, before)

    def test_dropout_warns_and_names_its_option(self, build, caplog):
        trainer = build(preference_rows(8), {"disable_dropout": False, "max_steps": 1}, model=tiny_gpt2())
        trainer.train()
        assert trainer.state.global_step == 1
        assert self.PART in caplog.text and "Cause: dropout" in caplog.text and "disable_dropout=True" in caplog.text

    def test_precision_warns(self, build, caplog):
        trainer = build(preference_rows(8), {"max_steps": 1})
        trainer.ref_model.bfloat16()
        trainer.train()
        assert "Cause: precision. Policy and reference hold weights of bfloat16, float32. Give them one" in caplog.text

    def test_an_explicit_reference_is_not_judged(self, build, caplog):
        build(preference_rows(8), {"max_steps": 1}, ref_model=tiny_llama(seed=1)).train()
        assert self.PART not in caplog.text

    def test_a_right_one_is_not_mentioned(self, build, caplog):
        build(preference_rows(8), {"max_steps": 1}).train()
        assert self.PART not in caplog.text


@pytest.fixture
def said(build, capsys, caplog):
    """The line and the warnings of a run with these options, when it starts."""

    def of(options=None, rows=None, **kwargs):
        trainer = build(preference_rows(12) if rows is None else rows, options, **kwargs)
        caplog.clear()
        trainer.train()
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("DPOPaperTrainer")]
        return line, [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    return of


class TestRunSummary:
    def test_the_line_states_what_is_in_force(self, said):
        line, _ = said({"global_batch_size": 12, "max_length": 60, "beta": 0.25})
        assert line == (
            "DPOPaperTrainer (preset 'paper'): 12 rows an update = 4 x 3 x 1 (per device x accumulation x ranks), "
            "2 updates; rmsprop at 0.001, constant_with_warmup (k+1)/(W+1), warm-up 2; beta 0.25; float32 weights; "
            "reference: copy in memory; prompts: computed once (attention by segments, packed); "
            "data: 12 rows (0 dropped), 2 prompts and 4 answers cut."
        )

    @pytest.mark.parametrize(
        ("options", "kwargs", "part"),
        [
            ({"bf16": True}, {}, "float32 weights under bf16 autocast"),
            ({}, {"peft_config": lora()}, "reference: adapter off"),
            ({"reference_free": True}, {}, "reference: none"),
            ({"preset": "trl"}, {}, "preset 'trl'"),
            ({"lr_scheduler_type": "cosine"}, {}, "cosine, warm-up 2"),
            ({}, {"rows": preference_rows(8).to_iterable_dataset()}, "data: streaming, not counted"),
        ],
        ids=["bf16", "adapter", "reference-free", "trl", "cosine", "stream"],
    )
    def test_parts_of_the_line(self, said, options, kwargs, part):
        assert part in said(options, **kwargs)[0]

    def test_a_usual_run_has_no_warning(self, said):
        assert said({"max_steps": 4})[1] == []

    def test_warm_up_that_does_not_end(self, said):
        (warning,) = said({"max_steps": 3, "warmup_steps": 5})[1]
        # The last of three updates runs at 3/6 of the peak
        assert "3 updates are fewer than twice the 5 of warm-up; the last runs at 0.0005 of 0.001" in warning
        assert "Lower `warmup_steps`" in warning

    @pytest.mark.parametrize(
        ("kwargs", "part"),
        [({}, "a model of 0.0 M parameters"), ({"peft_config": lora()}, "an adapter")],
        ids=["full", "adapter"],
    )
    def test_the_paper_s_rate_on_something_small(self, said, kwargs, part):
        (warning,) = said({"max_steps": 4, "learning_rate": 1e-6}, **kwargs)[1]
        assert "`learning_rate=1e-06`" in warning and part in warning and "Raise it" in warning

    def test_trl_s_rate_is_trl_s_business(self, said):
        assert said({"max_steps": 4, "learning_rate": 1e-6, "preset": "trl"})[1] == []

    def test_fsdp_that_accelerate_leaves_out(self, said, monkeypatch):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        (warning,) = said({"max_steps": 4})[1]
        assert "FSDP was asked for, and accelerate runs NO here, as it does on a CPU" in warning

    def test_weights_in_half_precision(self, said):
        (warning,) = said({"max_steps": 4}, model=tiny_llama().bfloat16())[1]
        assert "The trained weights are bfloat16" in warning and "Load the model in float32" in warning
