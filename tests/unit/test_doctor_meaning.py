"""The doctor on columns that nobody reads and on text that is not what was meant; and its silence on good data."""

import json
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from tiny import EOS_TOKEN, preference_rows, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from unit.conftest import GOOD
from unit.doctor_rows import TOKENIZER, found, look, names

from trl_dpo_ext.data.conversion.public_datasets import from_nectar, from_ultrafeedback
from trl_dpo_ext.data.doctor.column_checks import columns_read
from trl_dpo_ext.data.doctor.examination import worst_of_first
from trl_dpo_ext.quickstart.sentiment_task import load_reviews


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(question: str = "Is it?", chosen: str = "Yes.", rejected: str = "No.", **more: Any) -> dict[str, Any]:
    return {
        "prompt": [said("user", question)],
        "chosen": [said("assistant", chosen)],
        "rejected": [said("assistant", rejected)],
        **more,
    }


class TestColumns:
    def test_a_system_column_is_not_read(self):
        rows = [GOOD | {"system": "You are terse.", "id": 1}, GOOD | {"system": "", "id": 2}]
        report = look(rows)
        finding = found(report, "unread-column")
        assert (finding.severity, finding.rows, finding.example) == ("warning", [0], "'You are terse.'")
        assert "`system`" in finding.meaning
        assert report.unread_columns == ["system", "id"]
        assert "Columns that training does not read: system, id\n" in str(report)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("system_prompt", "Be terse."),
            ("systemMessage", "Be terse."),
            ("input", "2 + 2"),
            ("instruction", "Answer the question."),
            ("history", [["Hello", "Hi, what is it?"]]),
            ("context", "It rains."),
            ("documents", [{"title": "Rain", "text": "It rains."}]),
            ("conversation_history", [said("user", "Hello")]),
        ],
    )
    def test_text_that_probably_belongs_to_the_prompt(self, name, value):
        assert found(look([GOOD | {name: value}]), "unread-column").rows == [0]
        assert found(look([chat() | {name: value}]), "unread-column").rows == [0]
        ranking = {"prompt": "Is it?", "completions": [" Yes.", " No."]}
        assert found(look([ranking | {name: value}]), "unread-column").rows == [0]

    @pytest.mark.parametrize(
        "more",
        [
            {"instruction": "Is it  good?"},
            {"input": "good"},
            {"system": None, "history": []},
            {"question_id": "q7", "input_tokens": "12", "task_type": "qa", "context_url": "https://example.com"},
            {"conversation": [{"input": "Is it good?", "output": "Yes."}]},
            {"messages": [said("user", "Is it good?"), said("assistant", "Yes.")]},
            {"critique": "It is right.", "chosen_model": "a", "score_chosen": 2.0, "score_rejected": 1.0},
        ],
    )
    def test_what_the_prompt_has_or_what_is_about_it(self, more):
        assert "unread-column" not in names(look([GOOD | more]))

    @pytest.mark.parametrize("column", ["tools", "chat_template_kwargs"])
    def test_options_of_the_chat_template_beside_plain_text(self, column):
        rows = [GOOD | {column: None}, GOOD | {column: {"mood": "sunny"}}]
        assert found(look(rows), "unread-column").rows == [1]
        assert "unread-column" not in names(look([chat(chat_template_kwargs={"mood": "sunny"})]))

    def test_columns_of_other_trainers(self):
        assert found(look([chat(functions="[]x")]), "unread-column").severity == "warning"
        assert found(look([GOOD | {"margin": 0.5}]), "unread-column").severity == "note"

    @pytest.mark.parametrize(
        ("columns", "is_chat", "read"),
        [
            ("id prompt chosen rejected tools", True, "prompt chosen rejected tools"),
            ("id prompt chosen rejected tools", False, "prompt chosen rejected"),
            ("prompt chosen rejected ref_chosen_logps ref_rejected_logps ranks", False, None),
            ("prompt completions ranks scores ref_logps model", False, "prompt completions ranks scores ref_logps"),
            ("prompt chosen prompt_ids chosen_ids rejected_ids", False, "prompt_ids chosen_ids rejected_ids"),
            ("prompt prompt_ids completion_ids ranks", False, "prompt_ids completion_ids ranks"),
        ],
    )
    def test_columns_read(self, columns, is_chat, read):
        expected = (read or columns.removesuffix(" ranks")).split()
        assert columns_read(columns.split(), is_chat) == expected


# Row 0 is good, row 1 has what is named
TEXTS = [
    ("messages-as-text", {side: json.dumps([said("user", text)]) for side, text in GOOD.items()}),
    ("messages-as-text", {side: str([said("user", text)]) for side, text in GOOD.items()}),
    ("messages-as-text", {side: json.dumps([{"from": "gpt", "value": text}]) for side, text in GOOD.items()}),
    ("messages-as-text", {side: json.dumps([text]) for side, text in GOOD.items()}),
    ("messages-as-text", GOOD | {side: json.dumps([said("assistant", side)]) for side in ("chosen", "rejected")}),
    ("broken-characters", {"chosen": " CafÃ©."}),
    ("broken-characters", {"chosen": " donâ€™t"}),
    ("broken-characters", {"rejected": " Caf\ufffd"}),
    ("broken-characters", {"prompt": "Ð¿Ñ€Ð¸Ð²ÐµÑ‚?"}),
    ("broken-characters", {"prompt": "Is\0 it?"}),
    ("escapes-as-text", {"chosen": " Yes.\\nIt is."}),
    ("escapes-as-text", {"chosen": " One\\n\\nTwo"}),
    ("escapes-as-text", {"chosen": " caf\\u00e9"}),
    ("placeholder-text", {"chosen": " None"}),
    ("placeholder-text", {"prompt": "nan"}),
    ("placeholder-text", {"rejected": " [removed]"}),
    ("placeholder-text", {"rejected": " N/A."}),
    ("placeholder-text", {"rejected": "  \n"}),
    ("placeholder-text", {"prompt": "None\nIs it good?"}),
    ("placeholder-text", {"prompt": "Context: nan\nQuestion: Is it good?"}),
    ("answer-begins-with-role", {"chosen": " Assistant: Yes."}),
    ("answer-begins-with-role", {"prompt": "User: Is it?\nAssistant:", "chosen": " AI: Yes."}),
    ("answer-begins-with-role", {"chosen": " <|assistant|>Yes."}),
    ("quoted-text", {"chosen": '"Yes."', "rejected": '"No."'}),
    ("quoted-text", {"prompt": "“Is it good?”"}),
    ("foreign-template-marker", {"prompt": "<|user|>\nIs it good?\n<|assistant|>\n"}),
    ("foreign-template-marker", {"prompt": "[INST] Is it good? [/INST]"}),
    ("foreign-template-marker", {"chosen": " Yes.</s>"}),
    ("generation-prompt-missing", {"prompt": f"<|im_start|>user\nIs it?{EOS_TOKEN}\n"}),
    ("unclosed-think", {"chosen": " <think>So"}),
    ("answer-holds-other-turns", {"prompt": "\n\nHuman: Is it?\n\nAssistant:", "chosen": " Yes.\n\nHuman: So?"}),
    ("markup-escapes", {"chosen": " Yes &amp; no."}),
    ("markup-escapes", {"chosen": " snake\\_case"}),
]


@pytest.mark.parametrize(("name", "row"), TEXTS)
def test_the_row_is_named(name, row):
    finding = found(look([GOOD, GOOD | row]), name)
    assert (finding.count, finding.rows) == (1, [1])
    assert finding.severity == ("note" if name == "markup-escapes" else "warning")


OF_PLAIN_TEXT = ("answer-holds-other-turns", "foreign-template-marker")
IN_MESSAGES = [(name, row) for name, row in TEXTS if name not in OF_PLAIN_TEXT and row.get("chosen", "")[:1] == " "]


@pytest.mark.parametrize(("name", "row"), IN_MESSAGES)
def test_the_row_is_named_in_messages(name, row):
    good = chat(GOOD["prompt"], "Yes.", "No.")
    texts = {side: text.strip() for side, text in (GOOD | row).items()}
    assert found(look([good, chat(texts["prompt"], texts["chosen"], texts["rejected"])]), name).rows == [1]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": " [1, 2, 3]"},
        {"chosen": ' ["a", "b"]'},
        {"prompt": "¿Está bien? “IRMÔ, “É”, «café »", "chosen": " Это так, 好的."},
        {"chosen": " The path C:\\New is $\\nu \\neq \\nabla$."},
        {"chosen": ' print("a\\nB")'},
        {"chosen": " for i in x:\n    print('a\\n', i)"},
        {"chosen": " None of them."},
        {"chosen": " The assistant: a role."},
        {"prompt": "User: Is it?\n", "chosen": "Assistant: Yes.", "rejected": "Assistant: No."},
        {"chosen": ' "Yes," he said, "and no."'},
        {"prompt": f"<|im_start|>user\nIs it?{EOS_TOKEN}\n<|im_start|>assistant\n"},
        {"chosen": " <think>So</think>Yes", "rejected": " So</think>No"},
        {"chosen": " A user story.\nUser: a person."},
        {"prompt": "What does <b>x</b> <s>mean</s>?", "chosen": " R & D, 1 < 2 > 0."},
    ],
)
def test_text_that_only_looks_so(row):
    assert worst_of_first(Dataset.from_list([GOOD | row]), TOKENIZER) is None


def test_quotes_in_few_rows_are_quotations():
    rows = [GOOD, GOOD, GOOD | {"chosen": '"Yes."'}]
    assert found(look(rows), "quoted-text").severity == "note"


def test_a_marker_that_the_template_writes_as_plain_text_is_the_models_own():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    rows = [GOOD | {"prompt": "<|user|>Is it good?<|end|>"}]
    assert "foreign-template-marker" not in names(look(rows, tokenizer))
    assert "foreign-template-marker" in names(look(rows))


def test_unknown_tokens():
    words = Tokenizer(
        models.WordLevel({"<unk>": 0, "</s>": 1, "is": 2, "it": 3, "yes": 4, "no": 5}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    row = {"prompt": "is it", "chosen": "yes", "rejected": "no"}
    report = look([row, row | {"chosen": "yes sir yes"}], tokenizer)
    # 2 tokens of the prompt, 3 and 1 of the answers, and two EOS
    assert (found(report, "unknown-tokens").rows, found(report, "unknown-tokens").example) == ([1], "1 of 8 tokens")


class TestAcrossRows:
    @pytest.mark.parametrize(("side", "which"), [("chosen", "best"), ("rejected", "worst")])
    def test_a_constant_column(self, side, which):
        rows = [{"prompt": f"Is it {i}?", "chosen": f" Yes, {i}.", "rejected": f" No {i}."} for i in range(20)]
        constant = [row | {side: " I do not know."} for row in rows[:18]] + rows[18:]
        finding = found(look(constant), "constant-answer")
        assert (finding.count, finding.example) == (18, "' I do not know.'")
        assert f"The {which} answer" in finding.meaning
        assert "constant-answer" not in names(look(constant[:9]))
        assert "constant-answer" not in names(look([row | {side: " Yes" * (i % 2 + 1)} for i, row in enumerate(rows)]))

    def test_chosen_and_rejected_in_reversed_order(self):
        row = {"chosen": " Boo.", "rejected": " It is, and here is why.", "score_chosen": 1.0, "score_rejected": 2.0}
        finding = found(look([row | {"prompt": f"Is it {i}?"} for i in range(4)]), "scores-against-order")
        assert finding.count == 4
        assert "in most rows" in finding.meaning
        assert "shorter in 4 of these 4 rows" in finding.meaning


class TestTurns:
    def test_answers_that_hold_a_turn_of_the_user(self):
        more = [said("assistant", "Yes."), said("user", "Sure?"), said("assistant", "Sure.")]
        finding = found(look([chat(), chat() | {"chosen": more}]), "answer-holds-other-turns")
        assert (finding.rows, finding.example) == ([1], "assistant, user, assistant")

    def test_roles_that_the_template_does_not_name(self):
        row = {"prompt": [said("human", "Is it?")], "chosen": [said("gpt", "Yes.")], "rejected": [said("gpt", "No.")]}
        assert found(look([chat(), row]), "unknown-role").rows == [1]
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template += "{# 'human' and 'gpt' #}"
        assert "unknown-role" not in names(look([row], tokenizer))


SCORES = {"score_chosen": 8.0, "score_rejected": 5.5}
TURNS = [said("user", "How do I cook rice?"), said("assistant", "Boil it.")]
OTHER = [TURNS[0], said("assistant", "No idea, sorry.")]
NECTAR = {
    "prompt": "\n\nHuman: How do I cook rice?\n\nAssistant: ",
    "answers": [{"answer": f"Answer {k}.", "model": "m", "rank": float(k)} for k in range(1, 8)],
    "turns": 1,
    "num_responses": 7,
    "source": ["lmsys-chat-1m"],
    "good_natured": True,
}
ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "How do I cook rice?",
    "models": ["a", "b"],
    "completions": [{"response": "Boil it.", "overall_score": 8.0}, {"response": "No.", "overall_score": 1.0}],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
CODE = "Write a function that adds two numbers."
# One row each, in the schemas of public datasets
PUBLIC = {
    "Anthropic/hh-rlhf": {
        "chosen": "\n\nHuman: How do I cook rice?\n\nAssistant: Boil.\n\nHuman: How long?\n\nAssistant: 12 minutes.",
        "rejected": "\n\nHuman: How do I cook rice?\n\nAssistant: Boil.\n\nHuman: How long?\n\nAssistant: No idea.",
    },
    "HuggingFaceH4/ultrafeedback_binarized": {
        "chosen": TURNS,
        "rejected": OTHER,
        "messages": TURNS,
        **SCORES,
    },
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": {
        "id": "x_0",
        "source": "ultrafeedback",
        "chosen": TURNS,
        "rejected": OTHER,
        "chosen_model": "a",
        "rejected_model": "b",
        "chosen_rating": 5.0,
        "rejected_rating": 2.0,
    },
    "berkeley-nest/Nectar": from_nectar(NECTAR),
    "berkeley-nest/Nectar, unread columns": NECTAR | from_nectar(NECTAR),
    "openbmb/UltraFeedback": ULTRAFEEDBACK | from_ultrafeedback(ULTRAFEEDBACK),
    "Intel/orca_dpo_pairs": {
        "prompt": "You are an AI assistant.\n\nWhat is 2 + 2?",
        "system": "You are an AI assistant.",
        "question": "What is 2 + 2?",
        "chosen": "\n\n4",
        "rejected": "\n\nI think 5.",
    },
    "argilla/distilabel-intel-orca-dpo-pairs": {
        "prompt": [said("system", "You are an AI assistant."), said("user", "What is 2 + 2?")],
        "system": "You are an AI assistant.",
        "input": "What is 2 + 2?",
        "chosen": [said("assistant", "4")],
        "rejected": [said("assistant", "I think 5.")],
        "generations": ["4", "I think 5."],
        "order": ["a", "b"],
        "labelling_model": "gpt-4",
        "labelling_prompt": [said("system", "You judge."), said("user", "Which is better?")],
        "raw_labelling_response": "9 1",
        "rating": [9.0, 1.0],
        "rationale": "The first is right.",
        "status": "unchanged",
        "original_chosen": "4",
        "original_rejected": "I think 5.",
        "chosen_score": 9.0,
        "in_gsm8k_train": False,
    },
    "jondurbin/py-dpo-v0.1": {
        "prompt": CODE,
        "chosen": "\nHere it is:\n\n```python\ndef add(a: int, b: int) -> int:\n    return a + b\n```\n",
        "rejected": "\ndef add(a, b):\n    print('sum:\\n', a + b)\n    return None\n",
        "id": "f0",
    },
    "argilla/distilabel-capybara-dpo-7k-binarized": {
        "source": "Airoboros",
        "conversation": [{"input": "How do I cook rice?", "output": "Boil it."}],
        "original_response": "Boil it.",
        "generation_prompt": ["<|system|>\nBe good.</s>\n<|user|>"],
        "raw_generation_responses": ["No idea, sorry."],
        "chosen": TURNS,
        "rejected": OTHER,
        "rating_chosen": 5,
        "rating_rejected": 3,
        "chosen_model": "a",
        "rejected_model": "b",
    },
    "argilla/ultrafeedback-binarized-preferences-cleaned": {
        "source": "sharegpt",
        "chosen": TURNS,
        "chosen-rating": 5.0,
        "chosen-model": "a",
        "rejected": OTHER,
        "rejected-rating": 2.0,
        "rejected-model": "b",
    },
    "Dahoas/full-hh-rlhf": {
        "prompt": "\n\nHuman: How do I cook rice?\n\nAssistant:",
        "response": " Boil it.",
        "chosen": " Boil it.",
        "rejected": " No idea.",
    },
}


class TestSilence:
    @pytest.mark.parametrize("name", PUBLIC)
    def test_public_schemas(self, name):
        dataset = Dataset.from_list([PUBLIC[name]] * 2)
        assert worst_of_first(dataset, TOKENIZER) is None
        assert names(look(dataset)) <= {"duplicate-rows", "implicit-prompt", "length-bias"}

    @pytest.mark.parametrize("kind", ["plain", "chat", "implicit", "implicit_chat", "tools", "template"])
    @pytest.mark.parametrize("tokenization", ["separate", "joint"])
    def test_preferences_of_the_tests(self, kind, tokenization):
        assert worst_of_first(preference_rows(24, kind), TOKENIZER, tokenization=tokenization) is None

    def test_the_film_reviews_of_the_quickstart(self):
        reviews = load_reviews()[:400]
        good, bad = ([r["text"] for r in reviews if r["sentiment"] == kind] for kind in ("good", "bad"))
        rows = [
            {"prompt": f"Review {i}:", "chosen": f" {best}", "rejected": f" {worst}", "source": "examples"}
            for i, (best, worst) in enumerate(zip(good[:64], bad[:64], strict=True))
        ]
        assert worst_of_first(Dataset.from_list(rows), TOKENIZER) is None

    def test_token_ids(self):
        row = {"prompt_ids": [5, 6], "chosen_ids": [7, 2], "rejected_ids": [8, 2], "prompt": "nan", "system": "Be."}
        assert worst_of_first(Dataset.from_list([row] * 3), TOKENIZER) is None


class TestFirstLook:
    def test_most_rows_before_the_gravest(self):
        rows = [GOOD | {"chosen": " caf\ufffd"}] * 3 + [GOOD | {"prompt": "[INST] a"}]
        assert worst_of_first(Dataset.from_list(rows), TOKENIZER).name == "broken-characters"
        rows += [GOOD | {"prompt": "[INST] a"}] * 2
        assert worst_of_first(Dataset.from_list(rows), TOKENIZER).name == "foreign-template-marker"

    def test_a_few_rows_are_read(self):
        bad = GOOD | {"prompt": "nan"}
        rows = Dataset.from_list([GOOD] * 63 + [bad])
        assert worst_of_first(rows, TOKENIZER).rows == [63]
        assert worst_of_first(Dataset.from_list([GOOD] * 64 + [bad]), TOKENIZER) is None

    def test_fewer_of_a_stream(self):
        read = []

        def generate():
            for i in range(200):
                read.append(i)
                yield GOOD | {"prompt": "nan"} if i == 15 else GOOD

        assert worst_of_first(IterableDataset.from_generator(generate), TOKENIZER).rows == [15]
        assert max(read) <= 16

    def test_rows_that_training_stops_at_are_left_to_it(self):
        rows = [GOOD | {"chosen": None}, GOOD | {"prompt": "nan"}]
        assert worst_of_first(Dataset.from_list(rows), TOKENIZER).rows == [1]
