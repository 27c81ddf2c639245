"""Operations that the benchmarks count: by hand, by torch's own counter, by a mask, and against a worked-out table."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig
from trl.trainer.utils import add_fused_lm_head
from versions import needs

from benchmarks.contender import Task
from benchmarks.flops import Costs, Work, distinct_work, padded_work, row_work
from benchmarks.models import build_model
from benchmarks.shapes import SHAPES, Group, draw_batches, num_tokens
from benchmarks.synchronizations import count_synchronizations


TINY = LlamaConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    attn_implementation="eager",
)


def group(prompt: int, *answers: int) -> Group:
    return Group([3] * prompt, [[3] * answer for answer in answers])


def test_work_counted_by_hand():
    batch = [group(3, 2, 4), group(2, 1, 1)]
    # Rows of 5, 7, 3 and 3 tokens
    assert row_work(batch) == Work(tokens=18, pairs=15 + 28 + 6 + 6, scored=8)
    # Prompts of 3 and 2 tokens, then 1, 3, 0 and 0 tokens that see their prompt and their own past
    assert distinct_work(batch) == Work(tokens=9, pairs=(6 + (3 + 1) + (9 + 6)) + 3, scored=8)
    # Two forwards of two rows
    assert padded_work([(2, 7), (2, 3)], real=18) == Work(tokens=20, pairs=98 + 18, scored=12 + 4, padding=2)
    assert padded_work([(2, 7), (2, 3)], real=18, scored=8).scored == 8


def test_costs_counted_by_hand():
    costs = Costs.of(AutoModelForCausalLM.from_config(TINY))
    # Of each layer: queries and outputs 16 x 16, keys and values 16 x 8, and three of 16 x 24
    assert costs == Costs(linear=3 * (2 * 256 + 2 * 128 + 3 * 384), attention=3 * 16, head=16 * 48)
    work = Work(tokens=10, pairs=55, scored=4)
    linear, attention, head = 2 * costs.linear * 10, 4 * costs.attention * 55, 2 * costs.head * 4
    assert costs.needed(work) == 3 * (linear + attention + head)
    assert costs.needed(work, lora=True) == 2 * linear + 3 * attention + 2 * head
    assert costs.executed(work, live=False) == 3 * linear + 3.5 * attention + 4 * head
    assert costs.executed(work, live=True) == 4 * linear + 4.5 * attention + 5 * head


@needs("transformers", "5.23", "it counts positions by a product")
def test_costs_are_those_that_torch_counts():
    model = AutoModelForCausalLM.from_config(TINY)
    costs = Costs.of(model)
    input_ids = torch.randint(48, (2, 7))
    # Eager attention computes all scores, and no score again
    work = Work(tokens=14, pairs=2 * 49, scored=14)
    with FlopCounterMode(display=False) as counter:
        model(input_ids).logits.sum().backward()
    assert counter.get_total_flops() == costs.needed(work)

    add_fused_lm_head(model)
    # torch leaves the products out that are added in place
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **kwargs: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(input_ids=input_ids, labels=input_ids, fused_lm_head=True).loss.backward()
    scored = 12  # the last tokens have no successor
    again = 2 * costs.head * scored
    assert counter.get_total_flops() == costs.needed(Work(14, 98, scored)) + again


@pytest.mark.parametrize(
    ("prompt", "answer", "completions", "limit", "over_pairs"),
    [
        (160, 80, 2, 1.43, 1.43),
        (300, 300, 4, 1.47, 4.41),
        (1024, 128, 8, 3.97, 27.8),
        (1024, 128, 2, 1.75, 1.75),
        (4096, 512, 2, 1.74, 1.74),
        (4096, 512, 4, 2.74, 8.2),
    ],
)
def test_limits_of_a_model_of_a_billion(prompt, answer, completions, limit, over_pairs):
    costs = Costs.of(build_model("llama-1b", "meta"))
    assert costs == Costs(linear=973_078_528, attention=32_768, head=262_668_288)
    batch = [group(prompt, *[answer] * completions)]
    rows, distinct = (costs.executed(work(batch), live=True) for work in (row_work, distinct_work))
    assert rows / distinct == pytest.approx(limit, abs=0.005)
    # Each answer is in K - 1 pairs
    assert (completions - 1) * rows / distinct == pytest.approx(over_pairs, abs=0.05)


def test_micro_batches_fit_into_memory():
    batches = [[group(10, 5, 5), group(20, 5, 5), group(10, 5, 5), group(10, 5, 5), group(5, 5, 5), group(5, 5, 5)]]
    task = Task(None, None, batches, "", "cpu", bf16=False, lora=False, most_tokens=60)
    # The largest of three is 20 + 30 + 20, of two 20 + 30
    assert task.micro_batch_size(num_tokens) == 2
    assert replace(task, most_tokens=70).micro_batch_size(num_tokens) == 3
    assert replace(task, most_tokens=None).micro_batch_size(num_tokens) == 6
    assert replace(task, most_tokens=1).micro_batch_size(num_tokens) == 1


def test_lengths_are_lognormal_around_their_medians():
    (batch,) = draw_batches(SHAPES["hh"], 4000, 100, 1)
    for median, lengths in (
        (160, [len(group.prompt) for group in batch]),
        (80, [len(answer) for group in batch for answer in group.answers]),
    ):
        logs = torch.tensor(lengths, dtype=torch.float64).log()
        # Four standard errors
        assert logs.median().exp().item() == pytest.approx(median, rel=4 * 1.2533 * 0.7 / 4000**0.5)
        assert logs.std().item() == pytest.approx(0.7, rel=4 / (2 * 4000) ** 0.5)
    (equal,) = draw_batches(SHAPES["long-eight"], 2, 100, 1)
    assert [len(group.prompt) for group in equal] == [1024, 1024]
    assert {len(answer) for group in equal for answer in group.answers} == {128}


def test_calls_that_would_wait_for_a_gpu_are_counted():
    values, on_host = torch.arange(6.0, requires_grad=True), torch.arange(6.0)
    mask = torch.tensor([True, False] * 3)

    def step() -> None:
        chosen = values[mask]  # its length
        chosen.sum().backward()  # by `index_put` with the mask
        values.sum().item()
        values[torch.tensor([0, 2])].sum()  # by places: no waiting
        on_host.sum().item()  # nor for what the host computes
        on_host[mask].sum()

    assert count_synchronizations(step, [values]) == 3
    assert count_synchronizations(step, [on_host]) == 2
    assert count_synchronizations(lambda: values * 2, [values]) == 0
