"""The doctor on what chat templates make of messages: public model families', as TRL keeps them, and small ones."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from tiny import EOS_TOKEN, tiny_tokenizer
from transformers import PreTrainedTokenizerBase
from versions import needs

from trl_dpo_ext.data.doctor.examination import examine, worst_of_first
from trl_dpo_ext.data.doctor.findings import Finding


TEMPLATES = Path(trl.__file__).parent / "chat_templates"
MARKER = re.compile(r"<\|[\w-]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_turn>")
EOS = {
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "gemma": "<eos>",
    "gemma3": "<eos>",
    "phi3": "<|endoftext|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
    "glm4moe": "<|endoftext|>",
    "gptoss": "<|return|>",
}
FAMILIES = [*EOS, "qwen2_5", "qwen3", "qwen3_instruct_2507"]
# Zephyr's markers are plain text; Mistral's has no start of the assistant's turn
SHORT = {
    "zephyr": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}\n\n{% else %} {{ m['content'] + eos_token }}{% endif %}"
    "{% endfor %}",
}


@cache
def family(name: str) -> PreTrainedTokenizerBase:
    """The tiny tokenizer with the chat template of a model family, and its markers as special tokens."""
    tokenizer = tiny_tokenizer()
    template = SHORT.get(name) or (TEMPLATES / f"{name}.jinja").read_text()
    eos = EOS.get(name, EOS_TOKEN)
    markers = [] if name in SHORT else sorted(set(MARKER.findall(template)) - {eos})
    tokenizer.add_special_tokens({"eos_token": eos, "bos_token": "<s>", "additional_special_tokens": markers})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(*prompt: dict[str, Any], chosen: str = "Yes.", rejected: str = "No!", **of_message: Any) -> dict[str, Any]:
    return {
        "prompt": list(prompt) or [said("user", "Is it?")],
        "chosen": [said("assistant", chosen, **of_message)],
        "rejected": [said("assistant", rejected, **of_message)],
    }


def tool(name: str, argument: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": "It is.", "parameters": parameters}}


def calls(arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return chat() | {"chosen": [said("assistant", "", tool_calls=[call])], "tools": [tool("weather", "city")]}


def found(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Finding]:
    report = examine(Dataset.from_list(rows), tokenizer, progress=False)
    return {finding.name: finding for finding in report.findings if finding.name != "length-bias"}


def with_template(template: str) -> PreTrainedTokenizerBase:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


SYSTEM, USER = said("system", "Be brief."), said("user", "Is it?")
THOUGHT = "<think>\nLet me see.\n</think>\n\n"


class TestFamilies:
    @pytest.mark.parametrize("name", [*FAMILIES, *SHORT])
    @pytest.mark.parametrize("prompt", [(USER,), (SYSTEM, USER), (said("user", "Hi"), said("assistant", "So"), USER)])
    def test_good_conversations(self, name, prompt):
        expected = {
            "llama3_1": {"template-adds-system"},  # dates
            "gptoss": {"template-adds-system"},
            "qwen2_5": {"template-adds-system"} if prompt[0] is not SYSTEM else set(),
            "gemma": {"other-end-of-answer"} if prompt[0] is not SYSTEM else {"malformed-row"},
            "gemma3": {"other-end-of-answer"},
            "qwen3": {"template-adds-to-answer"},  # an empty <think>
            "glm4moe": {"template-adds-to-answer", "no-end-of-answer"},
            "deepseek_r1_distill": {"prompt-loses-its-end"},
        }
        assert set(found([chat(*prompt)], family(name))) == expected.get(name, set())

    @needs("transformers", "5.23", "it drops the reasoning of some templates")
    @pytest.mark.parametrize("name", FAMILIES)
    def test_reasoning(self, name):
        in_text = found([chat(chosen=THOUGHT + "Yes.", rejected=THOUGHT + "No!")], family(name))
        apart = found([chat(reasoning_content="Let me see.")], family(name))
        assert ("template-drops-reasoning" in in_text) == (name == "deepseek_r1_distill")
        assert ("template-drops-reasoning" in apart) == (name not in ("qwen3", "gptoss", "glm4moe"))
        assert "template-adds-to-answer" not in apart

    def test_reasoning_of_earlier_turns_may_go(self):
        prompt = (USER, said("assistant", THOUGHT + "So."), said("user", "Why?"))
        rows = [chat(*prompt, chosen=THOUGHT + "Yes.", rejected=THOUGHT + "No!")]
        assert found(rows, family("qwen3")) == {}

    def test_an_empty_think_belongs_to_the_prompt_if_it_is_asked_for(self):
        (name,) = found([chat()], family("qwen3"))
        assert name == "template-adds-to-answer"
        assert found([chat()], family("qwen3"))[name].example == repr("<think>\n\n</think>\n\n")
        rows = [chat() | {"chat_template_kwargs": {"enable_thinking": False}}]
        assert found(rows, family("qwen3")) == {}

    def test_white_space_that_is_taken_off(self):
        rows = [chat(), chat(chosen="Yes.\n", rejected="No!\n")]
        assert found(rows, family("llama3"))["template-strips-text"].rows == [1]
        assert "template-strips-text" not in found(rows, family("qwen2_5"))

    @pytest.mark.parametrize(("name", "drops"), [("qwen2_5", False), ("llama3_1", False), ("gemma", True)])
    def test_tools_that_a_template_does_not_take(self, name, drops):
        rows = [chat() | {"tools": [tool("weather", "city")]}, chat()]
        finding = found(rows, family(name)).get("template-drops-tools")
        assert (finding.rows if finding else None) == ([0] if drops else None)
        assert ("template-drops-tools" in found([calls({"city": "Paris"})], family(name))) == drops


class TestNulls:
    @pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1"])
    def test_schemas_that_differ_by_row(self, name):
        schemas = [[tool("weather", "city")], [tool("clock", "zone")]]
        rows = [chat() | {"tools": tools} for tools in schemas]
        finding = found(rows, family(name))["nulls-in-tools"]
        assert finding.rows == [0, 1]
        assert "zone" in finding.example
        as_text = [chat() | {"tools": json.dumps(tools)} for tools in schemas]
        assert "nulls-in-tools" not in found(as_text, family(name))
        assert "nulls-in-tools" not in found([rows[0], rows[0]], family(name))

    def test_arguments_that_differ_by_row(self):
        rows = [calls({"city": "Paris"}), calls({"zone": "CET"})]
        assert found(rows, family("qwen2_5"))["nulls-in-tools"].rows == [0, 1]
        assert "nulls-in-tools" not in found(rows[:1], family("qwen2_5"))

    def test_nulls_that_change_nothing(self):
        call = calls({"city": "Paris"})["chosen"]
        rows = [chat(), chat(USER, *call, said("tool", "It is sunny.")) | {"tools": [tool("weather", "city")]}]
        assert Dataset.from_list(rows)[1]["prompt"][0]["tool_calls"] is None
        assert found(rows, family("qwen2_5")).keys() == {"template-adds-system"}

    def test_arguments_as_text(self):
        rows = [calls('{"city": "Paris"}')]
        assert found(rows, family("qwen2_5"))["tool-arguments-encoded-twice"].rows == [0]
        assert "tool-arguments-encoded-twice" not in found(rows, family("qwen3"))  # takes both


LOOP = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
START = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


class TestSmallTemplates:
    def test_no_end(self):
        template = LOOP.replace("<|im_end|>", "{% if not loop.last %}<|im_end|>{% endif %}") + START
        finding = found([chat(), chat(SYSTEM, USER)], with_template(template))["no-end-of-answer"]
        assert (finding.severity, finding.rows) == ("warning", [0, 1])
        assert "Yes." in finding.example

    def test_an_eos_that_is_plain_text(self):
        template = LOOP.replace("<|im_end|>", "<|endoftext|>") + START
        assert "no-end-of-answer" in found([chat()], with_template(template))

    def test_another_end(self):
        tokenizer = with_template(LOOP + START)
        tokenizer.eos_token = "<|pad|>"
        finding = found([chat()], tokenizer)["other-end-of-answer"]
        assert (finding.severity, finding.example) == ("note", "'<|im_end|>', the EOS is '<|pad|>'")

    def test_no_system(self):
        template = "{% for m in messages if m['role'] != 'system' %}" + LOOP.split("%}", 1)[1] + START
        finding = found([chat(), chat(SYSTEM, USER)], with_template(template))["template-drops-system"]
        assert (finding.severity, finding.rows) == ("warning", [1])
        assert "'Be brief.'" in finding.example

    def test_other_text_that_is_dropped(self):
        parts = [said("user", [{"type": "text", "text": "Is it so?"}])]
        template = LOOP.replace("m['content']", "m['content'] if m['content'] is string else ''") + START
        rows = [{"prompt": parts, "chosen": chat()["chosen"], "rejected": chat()["rejected"]}]
        assert found(rows, with_template(template))["template-drops-text"].rows == [0]

    def test_text_that_is_added(self):
        behind = LOOP.replace("<|im_end|>", "{% if m['role'] == 'assistant' %} Over.{% endif %}<|im_end|>") + START
        finding = found([chat(rejected="n")], with_template(behind))["template-adds-to-answer"]
        assert "Over." in finding.example
        before = "<|im_start|>system\nYou are a very helpful bot.<|im_end|>\n" + LOOP + START
        finding = found([chat()], with_template(before))["template-adds-system"]
        assert (finding.severity, finding.count) == ("note", 1)
        assert "You are a very helpful bot" in finding.example

    def test_text_that_is_moved(self):
        template = LOOP + "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}"
        template = template.replace("messages %}", "messages if m['role'] != 'system' %}", 1)
        rows = [chat(SYSTEM, USER)]
        assert "template-moves-text" in found(
            rows, with_template(template.replace("{% if mess", START + "{% if mess"))
        )

    def test_what_depends_on_the_text_is_found_in_each_row(self):
        template = LOOP.replace("m['content'] }}", "m['content'] if 'z' not in m['content'] else '' }}") + START
        rows = [chat(said("user", f"Is it {i}{' z' if i in (3, 40) else ''}?")) for i in range(60)]
        finding = found(rows, with_template(template))["template-drops-text"]
        assert (finding.count, finding.rows) == (2, [3, 40])

    def test_rows_of_one_form_count_alike(self):
        template = "{% for m in messages if m['role'] != 'system' %}" + LOOP.split("%}", 1)[1] + START
        rows = [chat(*([SYSTEM] * (i % 2)), said("user", f"Is it {i}?")) for i in range(60)]
        assert found(rows, with_template(template))["template-drops-system"].count == 30

    def test_training_is_told_the_worst(self):
        template = LOOP.replace("<|im_end|>", "{% if not loop.last %}<|im_end|>{% endif %}") + START
        rows = Dataset.from_list([chat()] * 3)
        assert worst_of_first(rows, with_template(template)).name == "no-end-of-answer"
        assert worst_of_first(rows, with_template(LOOP + START)) is None
        assert worst_of_first(rows, family("gemma")) is None
