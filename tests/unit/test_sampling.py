"""Sampling: the policy's distribution by enumeration, and the same bits however samples are computed."""

import itertools
import math
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from closeness import same
from enumerated import LENGTH, enumerated, few_tokens
from peft import get_peft_model
from tiny import MODELS, lora_config, preference_rows, tiny_gpt2, tiny_llama, tiny_tokenizer

from trl_dpo_ext.evaluation import Sampler
from trl_dpo_ext.evaluation.samples import sampler as sampler_module
from trl_dpo_ext.sampling import options as options_module
from trl_dpo_ext.sampling.drawing import Step, draw
from trl_dpo_ext.sampling.options import SamplingOptions
from trl_dpo_ext.sampling.policy_forward import PolicyForward


PROMPTS = ["a", "a b c d a b", "c c"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("kind", "warp"),
    [
        ("gpt2", {}),
        ("gpt2", {"temperature": 0.7}),
        ("llama", {}),
        ("llama", {"temperature": 0.7}),
        ("llama", {"top_k": 2}),
        ("gpt2", {"top_p": 0.8}),
        ("llama", {"temperature": 1.3, "top_k": 4, "top_p": 0.9}),
    ],
)
def test_samples_have_the_enumerated_distribution(kind, warp):
    model, tokenizer = few_tokens(kind)
    model.train()  # dropout
    n = 4000
    sampler = Sampler(model, tokenizer, num_samples=n, max_new_tokens=LENGTH, seed=0, progress=False, **warp)
    for prompt, samples in zip(PROMPTS, sampler.sample(PROMPTS), strict=True):
        logps = enumerated(model, tokenizer(prompt)["input_ids"], sampler.options)
        assert sum(map(math.exp, logps.values())) == same(1.0)
        counts = Counter(tuple(sample.token_ids) for sample in samples)
        assert counts.keys() <= logps.keys()
        rare = tuple(ids for ids, logp in logps.items() if n * math.exp(logp) < 25)  # too few for a normal share
        for cell in [rare, *((ids,) for ids in logps if ids not in rare)]:
            p = sum(math.exp(logps[ids]) for ids in cell)
            share = sum(counts[ids] for ids in cell) / n
            assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / n), cell
        for sample in samples:
            assert sample.logp == same(logps[tuple(sample.token_ids)])
            assert sample.finished == (sample.token_ids[-1] == 0)
            assert sample.completion == tokenizer.decode(sample.token_ids, skip_special_tokens=True)
            assert sample.prompt == prompt
    assert [sample.sample for sample in samples] == list(range(n))


@pytest.mark.usefixtures("float64")
def test_temperature_0_takes_the_most_likely_token():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    sampler = Sampler(model, tokenizer, temperature=0, num_samples=2, max_new_tokens=8, progress=False)
    prompts = ["The film was", "A", "What is the weather"]
    for prompt, samples in zip(prompts, sampler.sample(prompts), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        [whole] = model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=tokenizer.eos_token_id).tolist()
        assert [sample.token_ids for sample in samples] == [whole[ids.size(1) :]] * 2
        assert [sample.logp for sample in samples] == [0, 0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [name for name in MODELS if "vlm" not in name])
def test_log_probabilities_are_those_of_one_row_without_padding(name):
    """Ragged prompts, so padded on the left, with samples that leave the batch when they end."""
    model = MODELS[name]()
    found = samples_of(model)
    assert {sample["finished"] for sample in found} == {False, True}
    assert [(sample["prompt_id"], sample["sample"]) for sample in found] == [(i, j) for i in range(8) for j in (0, 1)]
    for sample in found:
        assert sample["logp"] == same(logp_of(model, tiny_tokenizer()(sample["prompt"])["input_ids"], sample))


@pytest.mark.usefixtures("float64")
def test_a_model_without_a_cache_of_keys_and_values_draws_the_same(monkeypatch):
    expected = samples_of(tiny_llama(), max_new_tokens=12)
    init = PolicyForward.__init__

    def without(self, *args, **options):
        init(self, *args, **options)
        self.can_cache = False

    monkeypatch.setattr(PolicyForward, "__init__", without)
    found = samples_of(tiny_llama(), max_new_tokens=12)
    assert [sample.pop("logp") for sample in found] == same([sample.pop("logp") for sample in expected])
    assert found == expected


def logp_of(model: torch.nn.Module, prompt_ids: list[int], sample: dict[str, Any]) -> float:
    """Log-probability of a sample in one forward pass."""
    ids = sample["token_ids"]
    with torch.no_grad():
        logits = model.eval()(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    return logits.log_softmax(1).gather(1, torch.tensor(ids)[:, None]).sum().item()


# Bits


PREFIXES = [row["prompt"] for row in preference_rows(8)]


def samples_of(model, **options):
    model.generation_config.eos_token_id = list(range(2, 12))  # random models rarely draw a certain token
    given = {"num_samples": 2, "max_new_tokens": 32, "seed": 5, "progress": False} | options
    return [asdict(sample) for row in Sampler(model, tiny_tokenizer(), **given).sample(PREFIXES) for sample in row]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two to four samples, in parts of ten."""
    monkeypatch.setattr(sampler_module, "tokens_per_batch", lambda device: 200)
    monkeypatch.setattr(options_module, "_SAMPLES_PER_PART", 10)


@pytest.mark.float32
@pytest.mark.parametrize("name", ["gpt2", "moe"])
def test_the_budget_and_what_ran_before_do_not_change_a_bit(name, small_batches):
    model = MODELS[name]()
    whole = samples_of(model)
    for max_tokens in (1, 7, 500):
        torch.manual_seed(max_tokens)
        assert samples_of(model, max_tokens_per_batch=max_tokens) == whole


@pytest.mark.float32
def test_threads_do_not_change_a_bit(small_batches):
    whole = samples_of(tiny_llama(), max_new_tokens=8)
    torch.set_num_threads(2)
    try:
        assert samples_of(tiny_llama(), max_new_tokens=8) == whole
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_sample_depends_on_its_seed_prompt_and_number():
    streams = {}
    logits = torch.zeros(1, 1000)
    for seed, prompt, sample, token in itertools.product(range(3), repeat=4):
        drawn = draw(logits, [Step(prompt, sample, token)], SamplingOptions(seed=seed))
        streams[seed, prompt, sample, token] = drawn.tokens.item()
    assert len(set(streams.values())) > 70  # of 81 draws of 1000
    again = draw(logits, [Step(2, 1, 0)], SamplingOptions(seed=1)).tokens.item()
    assert again == streams[1, 2, 1, 0]


@pytest.mark.parametrize("warp", [{}, {"top_k": 20}, {"top_p": 0.7}])
def test_draws_do_not_depend_on_the_rows_beside(warp):
    options = SamplingOptions(temperature=0.9, **warp)
    logits = 3 * torch.randn(37, 1003, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    steps = [Step(i, 2, 3) for i in range(37)]
    whole = draw(logits, steps, options)
    for size in (1, 2, 5, 16):
        for start in range(0, 37, size):
            part = draw(logits[start : start + size], steps[start : start + size], options)
            assert part.tokens.equal(whole.tokens[start : start + size])
            assert part.logps.equal(whole.logps[start : start + size])


def test_draws_are_of_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    n = 20_000
    steps = [Step(0, i, 0) for i in range(n)]
    drawn = draw(logits.expand(n, 4), steps, SamplingOptions())
    p = logits[0].double().softmax(0).numpy()
    shares = np.bincount(drawn.tokens.numpy(), minlength=4) / n
    assert np.all(np.abs(shares - p) <= 4 * np.sqrt(p * (1 - p) / n))
    assert drawn.logps.numpy() == same(np.log(p)[drawn.tokens.numpy()])


# Models and errors


@pytest.mark.usefixtures("float64")
def test_an_adapter_and_a_mode_that_is_restored():
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), lora_config(init_lora_weights=False)).train()
    model.base_model.eval()
    modes = [module.training for module in model.modules()]
    sampler = Sampler(model, tiny_tokenizer(), max_new_tokens=8)
    sample = sampler.sample(PREFIXES[:2])[1][0]
    assert [module.training for module in model.modules()] == modes
    ids = tiny_tokenizer()(PREFIXES[1])["input_ids"]
    assert sample.logp == same(logp_of(model, ids, asdict(sample)))


def test_a_chat_prompt_is_rendered_for_an_answer():
    sampler = Sampler(tiny_llama(), tiny_tokenizer(), max_new_tokens=2)
    prompt = [{"role": "user", "content": "So?"}]
    expected = tiny_tokenizer()("<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    assert sampler.tokenize({"prompt": prompt}, 0, "row 0").token_ids == expected
    assert sampler.sample([prompt])[0][0].prompt == prompt


def test_tokens_that_end_a_sample():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    assert Sampler(model, tokenizer).eos_ids == {2}
    model.generation_config.eos_token_id = [2, 9]
    assert Sampler(model, tokenizer).eos_ids == {2, 9}
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token, and the model's generation config names none"):
        Sampler(model, tokenizer)


def test_defaults_sample_the_policy():
    assert asdict(SamplingOptions()) == {
        "num_samples": 1,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": 256,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "`num_samples=0` must be a whole number of at least 1"),
        ({"top_k": -1}, "`top_k=-1` must be a whole number of at least 0"),
        ({"seed": 1.5}, "`seed=1.5` must be a whole number"),
        ({"temperature": -0.1}, "`temperature=-0.1` must be a finite number of at least 0"),
        ({"temperature": math.nan}, "`temperature=nan`"),
        ({"top_p": 1.1}, "`top_p=1.1` must be above 0 and at most 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**options)
    with pytest.raises(ValueError, match=message):
        replace(SamplingOptions(), **options)


def test_prompts_that_cannot_be_sampled():
    sampler = Sampler(tiny_gpt2(), tiny_tokenizer(), max_new_tokens=500)
    with pytest.raises(
        ValueError, match=r"`prompt` in prompt 1 has \d+ tokens. With `max_new_tokens=500` they exceed"
    ):
        sampler.sample(["Q", "word " * 20])
    with pytest.raises(ValueError, match="`prompt` in prompt 0 is empty"):
        sampler.sample([""])
    with pytest.raises(ValueError, match="`prompt` in prompt 0 is of type int"):
        sampler.sample([3])
    with pytest.raises(ValueError, match="`prompts` is a text"):
        sampler.sample("Q")
    assert sampler.sample([]) == []


def test_logits_that_are_not_finite():
    model = tiny_llama()
    model.lm_head.weight.data[5] = math.nan
    with pytest.raises(ValueError, match="The logits of prompt 0 are not finite"):
        Sampler(model, tiny_tokenizer(), max_new_tokens=4).sample(["Q"])
