"""The doctor: what it finds in columns, texts, messages and comparisons, and in which rows."""

import pytest
from datasets import Dataset, IterableDataset
from tiny import BOS_TOKEN, EOS_TOKEN, preference_rows, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from unit.conftest import GOOD
from unit.doctor_rows import MALFORMED_PAIRS, RANKED, chat, found, look, messages, names, pairs

from trl_dpo_ext.data.doctor.length_checks import wilson_interval
from trl_dpo_ext.data.preparation_report import DataReport


START = "\n\nHuman: Is it good?\n\nAssistant:"


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words with a mark for the space before them, put before every text as SentencePiece does."""
    vocab = {token: number for number, token in enumerate(["<unk>", "</s>", "▁a:", "▁b", "▁c", "b", "▁"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


class TestHealthy:
    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    def test_pairs(self, tokenization):
        report = look(pairs(40), tokenization=tokenization, max_length=512)
        assert report.findings == []
        assert report.healthy
        assert report.preparation == DataReport(rows=40)
        assert (report.kind, report.examined, report.refused) == ("preference pairs", 40, 0)

    def test_chat(self):
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        rows = [{name: messages(f"{roles[name]}:{text}") for name, text in row.items()} for row in pairs(40)]
        assert names(look(rows, max_length=512)) == set()

    def test_rankings(self):
        rows = [RANKED | {"prompt": f"What about {i}?"} for i in range(5)]
        report = look(rows, max_length=512)
        assert names(report) == set()
        assert report.kind == "rankings"
        assert (report.preparation.completions, report.preparation.largest) == (15, 3)

    def test_a_stream(self):
        rows = Dataset.from_list([*pairs(9), GOOD | {"chosen": ""}])
        assert look(rows.to_iterable_dataset()).to_dict() == look(rows).to_dict()

    def test_token_ids(self):
        row = {"prompt_ids": [5, 6], "chosen_ids": [7, 2], "rejected_ids": [8, 2]}
        rows = [row, row | {"chosen_ids": [8, 2]}, row | {"prompt_ids": [5], "chosen_ids": []}]
        report = look(rows)
        assert report.preparation == DataReport(
            rows=1, dropped=1, first_dropped="row 1, both answers have the same tokens"
        )
        assert found(report, "malformed-row").rows == [2]


class TestErrors:
    def test_every_malformed_row_is_named_with_the_trainer_s_words(self):
        report = look(MALFORMED_PAIRS)
        refused = {tuple(finding.rows): finding for finding in report.of_severity("error")}
        assert {rows: finding.count for rows, finding in refused.items()} == {(1, 4): 2, (2,): 1, (3,): 1, (5,): 1}
        assert refused[1, 4].meaning == "Training stops: `chosen` in row 1 of the train dataset is None."
        assert refused[1, 4].fix == "Fill it in, or drop such rows with `dataset.filter`."
        assert "`prompt` in row 3 of the train dataset is empty and the tokenizer adds no BOS" in refused[3,].meaning
        assert (report.examined, report.refused, report.preparation) == (6, 5, DataReport(rows=1))
        assert not report.healthy

    def test_an_empty_prompt_is_fine_after_bos(self):
        assert look([GOOD | {"prompt": ""}], tiny_tokenizer(bos=True)).healthy

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            ({"ranks": [0, 1]}, "`ranks` in row 1 of the train dataset has 2 entries but `completions` has 3."),
            ({"ranks": [0, 1, -1]}, "`ranks[2]` in row 1 of the train dataset is -1."),
            ({"ranks": None}, "`ranks` in row 1 of the train dataset is None."),
            ({"completions": None}, "`completions` in row 1 of the train dataset is None."),
            ({"completions": [" a", None, " b"]}, "`completions[1]` in row 1 of the train dataset is None."),
        ],
    )
    def test_rankings(self, row, says):
        finding = found(look([RANKED, RANKED | row]), "malformed-row")
        assert (finding.meaning, finding.count, finding.rows) == (f"Training stops: {says}", 1, [1])

    def test_scores_that_are_no_numbers_are_one_kind(self):
        row = {"prompt": "Is it?", "completions": [" Yes.", " No."], "scores": [1.0, 0.5]}
        rows = [row | {"scores": scores} for scores in ([1.0, 0.5], [float("nan"), 1.0], [0.0, float("-inf")], [1.0])]
        counts = [(finding.count, finding.rows) for finding in look(rows).findings if finding.severity == "error"]
        assert counts == [(2, [1, 2]), (1, [3])]

    def test_scores_against_ranks(self):
        report = look([RANKED | {"scores": [3.0, 2.0, 1.0]}, RANKED | {"scores": [1.0, 2.0, 3.0]}])
        assert found(report, "malformed-row").rows == [1]
        assert "The rank direction contradicts the scores in row 1" in found(report, "malformed-row").meaning

    def test_max_completions(self):
        finding = found(look([RANKED], max_completions=2), "malformed-row")
        assert finding.fix == "Raise `max_completions`, or drop such rows with `dataset.filter`."

    def test_columns(self):
        report = look([{"prompt": "a", "chosenn": " b", "rejected": " c"}])
        assert names(report) == {"columns"} and report.examined == 0
        assert "no column `chosen`" in found(report, "columns").meaning
        assert "Is it `chosenn`?" in found(report, "columns").fix

    def test_no_row(self):
        assert names(look(Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}))) == {"no-rows"}

    def test_no_chat_template(self):
        report = look([chat(("user:Is it?",))] * 3, tiny_tokenizer(chat_template=False))
        assert found(report, "malformed-row").count == 3
        assert "the tokenizer has no chat template" in found(report, "malformed-row").meaning

    def test_a_chat_template_that_refuses_a_row(self):
        tokenizer = tiny_tokenizer()
        refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role.') }}{% endif %}"
        tokenizer.chat_template = refusal + tokenizer.chat_template
        rows = [chat(("user:Is it?",)), chat(("system:Be brief.", "user:Is it?"))]
        finding = found(look(rows, tokenizer), "malformed-row")
        assert finding.rows == [1]
        assert (
            "The chat template cannot render `prompt` in row 1 of the train dataset: No system role."
            in finding.meaning
        )

    def test_reference_log_probabilities(self):
        logps = {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}
        finding = found(look([GOOD | logps, GOOD | logps | {"ref_rejected_logps": float("nan")}]), "malformed-row")
        assert finding.rows == [1]
        assert finding.meaning == "Training stops: `ref_rejected_logps` in row 1 of the train dataset is nan."

    def test_text_and_messages_in_one_data_set(self):
        rows = IterableDataset.from_generator(lambda: iter([GOOD, chat(("user:Is it?",)), GOOD]))
        report = look(rows)
        assert report.preparation.rows == 3 and report.healthy

    def test_no_eos(self):
        tokenizer = tiny_tokenizer()
        tokenizer.eos_token = None
        report = look([GOOD, GOOD], tokenizer)
        assert found(report, "malformed-row").count == 2
        assert "no EOS token" in found(report, "malformed-row").meaning

    def test_rows_that_carry_no_preference(self):
        rows = [
            GOOD,
            GOOD | {"chosen": ""},
            GOOD | {"rejected": " Yes."},
            GOOD | {"chosen": f" No.{EOS_TOKEN}"},
            GOOD | {"rejected": ""},
        ]
        report = look(rows)
        reasons = {finding.meaning.split(": ")[1]: finding.rows for finding in report.of_severity("error")}
        assert reasons == {
            "an answer is empty.": [1, 4],
            "both answers are the same.": [2],
            "both answers have the same tokens.": [3],
        }
        assert (report.preparation.rows, report.preparation.dropped) == (1, 4)

    def test_rankings_that_say_nothing(self):
        rows = [
            RANKED,
            RANKED | {"ranks": [1, 1, 1]},
            RANKED | {"completions": [" a"], "ranks": [0]},
            RANKED | {"completions": [" a", " b", ""]},
        ]
        report = look(rows)
        assert [(finding.rows, finding.name) for finding in report.findings[:3]] == [
            ([1], "row-left-out"),
            ([2], "row-left-out"),
            ([3], "answer-left-out"),
        ]
        assert report.findings[0].meaning == "Training drops the row: all completions tie."
        assert found(report, "answer-left-out").severity == "warning"


# Rows 0 and 1 have nothing of it, row 2 has
TEXTS = {
    "eos-in-text": GOOD | {"chosen": f" Yes.{EOS_TOKEN} And"},
    "special-token-in-text": GOOD | {"rejected": " No.<|im_start|>"},
    "special-token-in-prompt": GOOD | {"prompt": "<|im_start|>Is it good?"},
    "no-space-before-answer": GOOD | {"chosen": "Yes.", "rejected": "No."},
    "first-space-tells-answers-apart": GOOD | {"rejected": "\u201cNo.\u201d"},
    "first-space-mixed": GOOD | {"prompt": "Is it good? ", "chosen": "Yes", "rejected": "No"},
    "border-tokens-differ": {"prompt": "say: the ca", "chosen": "st runs", "rejected": "t"},
    "scores-against-order": GOOD | {"chosen": " Sure.", "score_chosen": 1.0, "score_rejected": 2.0},
    "duplicate-rows": GOOD,
    "duplicate-prompts": GOOD | {"chosen": " Sure."},
    "contradictions": {"prompt": "Is it good?", "chosen": " No.", "rejected": " Yes."},
}


class TestTexts:
    @pytest.mark.parametrize("name", TEXTS)
    def test_the_row_is_named(self, name):
        scores = {"score_chosen": 2.0, "score_rejected": 1.0}
        report = look([row | scores for row in (GOOD, pairs(1)[0])] + [scores | TEXTS[name]])
        assert (found(report, name).count, found(report, name).rows) == (1, [2])

    def test_an_eos_at_the_end_of_an_answer_is_not_doubled(self):
        assert names(look([GOOD | {"chosen": f" Yes.{EOS_TOKEN}"}])) == set()

    def test_an_eos_in_a_message(self):
        rows = [chat(("user:Is it?",)), chat(("user:Is it?",), (f"assistant:Yes.{EOS_TOKEN}",))]
        assert found(look(rows), "eos-in-text").rows == [1]

    def test_a_special_token_in_a_question(self):
        rows = [chat(("user:Is it?",)), chat((f"user:Is{EOS_TOKEN} it?",))]
        assert found(look(rows), "special-token-in-text").rows == [1]

    def test_bos_twice(self):
        report = look([GOOD, GOOD | {"prompt": f"{BOS_TOKEN}Is it?"}], tiny_tokenizer(bos=True))
        assert found(report, "bos-twice").rows == [1]

    def test_a_space_that_sentencepiece_puts(self):
        rows = [{"prompt": "a:", "chosen": " b", "rejected": " c"}, {"prompt": "a:", "chosen": "b", "rejected": "c"}]
        report = look(rows, word_tokenizer())
        assert found(report, "border-text-differs").rows == [1]
        assert "border-tokens-differ" not in names(report)

    def test_joint_tokens_take_the_prompt_s_end(self):
        report = look([GOOD, TEXTS["border-tokens-differ"]], tokenization="joint")
        assert (found(report, "prompt-loses-its-end").rows, found(report, "prompt-loses-its-end").example) == (
            [1],
            repr("a"),
        )

    def test_a_chat_template_that_renders_a_prompt_otherwise_alone(self):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template += "{% if add_generation_prompt %}Think: {% endif %}"
        finding = found(look([chat(("user:Is it?",))] * 2, tokenizer), "prompt-loses-its-end")
        assert (finding.count, finding.example) == (2, "'Think: '")

    def test_implicit_prompts(self):
        rows = [
            {"chosen": "Is it? Yes", "rejected": "Is it? No"},
            {"chosen": "It is not", "rejected": "It is now"},
            {"chosen": START + " So, yes", "rejected": START + " So, no"},
        ]
        report = look(rows)
        assert found(report, "implicit-prompt").count == 3
        assert found(report, "prompt-split-in-word").rows == [1]
        assert found(report, "prompt-split-in-word").example == "'It is no' + 't'"
        assert "hh-prompt-split-in-answers" not in names(report)
        joint = found(look(rows, tokenization="joint"), "hh-prompt-split-in-answers")
        assert (joint.rows, joint.example) == ([2], "' So,'")


class TestChat:
    @pytest.mark.parametrize(
        ("name", "row"),
        [
            ("roles-do-not-alternate", chat(("user:Hi.", "user:Is it?"))),
            ("roles-do-not-alternate", chat(("user:Hi.", "system:Be brief.", "user:Is it?"))),
            ("answer-not-by-assistant", chat(("user:Is it?",), ("assistant:Yes.", "user:Thanks."))),
            ("prompt-ends-with-assistant", chat(("user:Is it?", "assistant:Well,"))),
        ],
    )
    def test_the_row_is_named(self, name, row):
        report = look([chat(("system:Be brief.", "user:Is it?")), row])
        assert found(report, name).rows == [1]

    def test_tool_calls_alternate(self):
        assert names(look(preference_rows(4, "tools")), "error", "warning") == set()


class TestComparisons:
    def test_scores_of_completions_that_come_best_first(self):
        row = {"prompt": "Is it?", "completions": [" Yes.", " No."], "rating": [5, 1], "human_ranking": [1, 2]}
        rows = [row, row | {"rating": [1, 5]}, row | {"human_ranking": [2, 1]}, row | {"rating": [3, 3]}]
        report = look(rows)
        assert found(report, "scores-against-order").rows == [1, 2]
        assert found(report, "scores-against-order").example == "`rating`: 1 for the best, 5 for the worst"
        assert "in most rows" not in found(report, "scores-against-order").meaning
        assert "in most rows" in found(look(rows[1:3]), "scores-against-order").meaning

    def test_rankings_that_contradict_a_pair_of_another(self):
        rows = [RANKED, RANKED | {"ranks": [0, 2, 1]}, RANKED | {"ranks": [0, 1, 1]}]
        report = look(rows)
        assert found(report, "contradictions").rows == [1]
        assert found(report, "contradictions").example == "row 1 contradicts row 0"
        assert found(report, "ties").rows == [2]

    def test_held_out_prompts(self):
        held_out = Dataset.from_list([pairs(5)[3], GOOD, GOOD | {"prompt": None}])
        assert found(look(pairs(5), held_out=held_out), "held-out-prompts").rows == [3]
        implicit = Dataset.from_list([{"chosen": "What about 2? yes", "rejected": "What about 2? no"}])
        assert found(look(pairs(5), held_out=implicit), "held-out-prompts").rows == [2]
        wrong = Dataset.from_list([{"chosen": "a", "reject": "b"}])
        assert (
            "The held-out dataset has no column `rejected`" in found(look(pairs(5), held_out=wrong), "columns").meaning
        )

    def test_a_stock_opening(self):
        rows = pairs(100)
        for i in range(3, 13):
            rows[i]["chosen"] = f" As a large language model {rows[i]['chosen']}"
        report = look(rows)
        assert (found(report, "stock-opening").count, found(report, "stock-opening").rows) == (10, [3, 4, 5, 6, 7])
        assert found(report, "stock-opening").example == "'As a large language model'"
        assert "stock-opening" not in names(look(rows[:12]))

    def test_length_bias(self):
        rows = [{"prompt": f"{i}:", "chosen": "y" * 5, "rejected": "x" * 3} for i in range(30)]
        rows += [{"prompt": f"{i}:", "chosen": "y" * 3, "rejected": "x" * 5} for i in range(30, 40)]
        rows += [{"prompt": f"{i}:", "chosen": "y" * 3, "rejected": "x" * 3} for i in range(40, 60)]
        report = look(rows)
        # Differences of 2, 30 for and 10 against: (30 - 10) * 2 / sqrt(60 * 40 * 4)
        assert report.length_correlation == pytest.approx(40 / 9600**0.5)
        assert report.longer_preferred == pytest.approx((0.75, *wilson_interval(30, 40)))
        finding = found(report, "length-bias")
        assert (finding.severity, finding.count) == ("note", 30)
        assert "in 75% of the 40 rows whose answers differ in length" in finding.meaning
        assert found(look(rows[:30]), "length-bias").severity == "warning"
        assert "The shorter answer" in found(look(rows[30:]), "length-bias").meaning

    def test_the_interval_is_wilson_s(self):
        from scipy.stats import binomtest

        for successes, trials in ((0, 5), (3, 5), (55, 100), (1000, 1000)):
            interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
            assert wilson_interval(successes, trials) == pytest.approx((interval.low, interval.high), abs=1e-6)
