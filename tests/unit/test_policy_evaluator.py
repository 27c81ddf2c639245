"""Evaluation of a policy: estimates and standard errors against exact values, by enumeration of all completions."""

import itertools
import math

import numpy as np
import pytest
import torch
from closeness import same
from enumerated import LENGTH, WORDS, enumerated, few_tokens
from peft import get_peft_model
from tiny import lora_config, tiny_llama, tiny_tokenizer

from trl_dpo_ext.evaluation import PolicyEvaluation, PolicyEvaluator
from trl_dpo_ext.evaluation.policies.estimates import mean_over_prompts, paired_difference, wins_by_prompt
from trl_dpo_ext.evaluation.policies.sequence_kl import SequenceKL, TokenizedCompletion
from trl_dpo_ext.sampling.options import SamplingOptions
from trl_dpo_ext.sampling.policy_forward import PolicyForward


# Prompts of one, two and five words: ragged, so padded on the left while they are sampled
PROMPTS = [" ".join(words) for length in (1, 2) for words in itertools.product(WORDS[1:], repeat=length)]
PROMPTS += [f"{prompt} a d b c" for prompt in WORDS[1:]]
GROUPS, PROMPTS_OF_GROUP, SAMPLES = 60, 32, 4
BEST_OF = (1, 2, 4)


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward with ties: letters a, less half the letters d, and a bonus where the prompt begins with b."""
    return [
        c.count("a") - 0.5 * c.count("d") + 0.25 * p.startswith("b") for p, c in zip(prompts, completions, strict=True)
    ]


def exact_values(policy, reference, tokenizer, options: SamplingOptions) -> dict[str, float]:
    """Exact means over `PROMPTS` of what is estimated, with the best of 4 averaged over ties."""
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        logps, itself = enumerated(policy, ids, options), enumerated(reference, ids, SamplingOptions())
        p = np.exp([logps[one] for one in logps])
        texts = [tokenizer.decode(one, skip_special_tokens=True) for one in logps]
        rewards = np.array(letters([prompt] * len(texts), texts))
        of_reference = itself if options.temperature == 1 else enumerated(reference, ids, options)
        q = np.exp([of_reference.get(one, -math.inf) for one in logps])
        better = (rewards[:, None] > rewards) + 0.5 * (rewards[:, None] == rewards)
        row = {
            "reward": p @ rewards,
            "kl": p @ (np.log(p) - [itself[one] for one in logps]),
            "win_over_reference": p @ better @ q,
            "finished_share": sum(w for w, one in zip(p, logps, strict=True) if one[-1] == 0),
            "mean_length": sum(w * len(one) for w, one in zip(p, logps, strict=True)),
        }
        for n in BEST_OF:
            below = np.array([p[rewards < value].sum() for value in rewards])
            up_to = np.array([p[rewards <= value].sum() for value in rewards])
            row[f"best_of_{n}"] = (p * (up_to**n - below**n) / (up_to - below)) @ rewards
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("kind", "temperature"), [("gpt2", 0.7), ("llama", 1.0)])
def test_estimates_and_their_standard_errors(kind, temperature):
    policy, tokenizer = few_tokens(kind, seed=1)
    reference, _ = few_tokens(kind, seed=0)
    policy.train()  # dropout in the config
    options = {"num_samples": SAMPLES, "max_new_tokens": LENGTH, "temperature": temperature, "seed": 0}
    expected = exact_values(policy, reference, tokenizer, SamplingOptions(**options))
    policy.train()
    draws = np.random.default_rng(0).integers(0, len(PROMPTS), GROUPS * PROMPTS_OF_GROUP)
    evaluator = PolicyEvaluator(reference, tokenizer, letters, progress=False, **options)
    whole = evaluator.evaluate(policy, [PROMPTS[i] for i in draws])
    assert policy.training

    for name, estimates in summaries(whole, len(draws) // 5).items():
        for mean, se in estimates:
            assert abs(mean - expected["kl" if name == "kl_k1" else name]) <= 4 * se, name
    spreads = {}
    for name, estimates in summaries(whole, PROMPTS_OF_GROUP).items():
        means, ses = np.array(estimates).T
        spreads[name] = means.std(ddof=1)
        assert 0.75 * spreads[name] <= np.sqrt((ses**2).mean()) <= 1.25 * spreads[name], name
    assert spreads["kl"] <= spreads["kl_k1"]


def summaries(whole: PolicyEvaluation, size: int) -> dict[str, list[tuple[float, float]]]:
    """Estimates with their standard errors from groups of prompts, which are independent evaluations."""
    found: dict[str, list[tuple[float, float]]] = {}
    for start in range(0, len(whole.kl), size):
        group = part_of(whole, slice(start, start + size), reference=whole.reference)
        summary = group.summary(best_of=BEST_OF)
        for row in summary.pop("best_of_n"):
            summary |= {f"best_of_{row['n']}": row["reward"], f"best_of_{row['n']}_se": row["reward_se"]}
        for name in summary:
            if f"{name}_se" in summary and name != "distinct_words":
                found.setdefault(name, []).append((summary[name], summary[f"{name}_se"]))
    return found


def part_of(evaluation: PolicyEvaluation, prompts: slice, reference: PolicyEvaluation | None) -> PolicyEvaluation:
    arrays = {name: value[prompts] for name, value in vars(evaluation).items() if isinstance(value, np.ndarray)}
    rewards = {name: values[prompts] for name, values in evaluation.rewards.items()}
    inner = None if reference is None else part_of(reference, prompts, None)
    return PolicyEvaluation(**arrays, rewards=rewards, reference=inner)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "warp",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 0},
        {"top_k": 2},
        {"top_p": 0.8},
        {"temperature": 1.3, "top_k": 4, "top_p": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_mean_of_the_sequence_kl_over_all_completions_is_the_exact_kl(kind, warp):
    policy, tokenizer = few_tokens(kind, seed=1)
    reference, _ = few_tokens(kind, seed=0)
    options = SamplingOptions(max_new_tokens=LENGTH, **warp)
    sequence_kl = SequenceKL(PolicyForward(policy, "no"), PolicyForward(reference, "no"), options)
    rows, p, expected = [], [], []
    prompts = ["a", "a b c d a b", "c c"]
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        logps, itself = enumerated(policy, ids, options), enumerated(reference, ids, SamplingOptions())
        rows += [TokenizedCompletion(ids, list(one)) for one in logps]
        p += [math.exp(logp) for logp in logps.values()]
        expected += [(logps[one], itself[one]) for one in logps]
    found = sequence_kl.of_completions(rows)  # in one batch, of different lengths
    assert [one.logp for one in found] == same([logp for logp, _ in expected])
    assert [one.ref_logp for one in found] == same([ref_logp for _, ref_logp in expected])
    exact = sum(weight * (logp - ref_logp) for weight, (logp, ref_logp) in zip(p, expected, strict=True))
    assert sum(weight * one.kl for weight, one in zip(p, found, strict=True)) == same(exact)
    assert all(one.kl >= 0 for one in found)


def test_batches_do_not_change_the_sequence_kl(monkeypatch):
    from trl_dpo_ext.evaluation.policies import sequence_kl as module

    rows = [TokenizedCompletion([5] * (1 + i % 4), list(range(7, 8 + i % 5))) for i in range(12)]
    sequence_kl = SequenceKL(PolicyForward(tiny_llama(1), "no"), PolicyForward(tiny_llama(0), "no"), SamplingOptions())
    with_all = sequence_kl.of_completions(rows)
    monkeypatch.setattr(module, "_MAX_TOKENS", 1)
    monkeypatch.setattr(module, "_MAX_LOGITS_AT_ONCE", 1)
    for found, expected in zip(sequence_kl.of_completions(rows), with_all, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)  # float32, and far from any other row


def adapted(seed: int):
    policy = get_peft_model(tiny_llama(seed), lora_config())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    return policy


def test_two_policies_with_references_of_their_own():
    prompts, options = ["The film was", "A"], {"num_samples": 4, "max_new_tokens": 6, "progress": False}
    inside = PolicyEvaluator(None, tiny_tokenizer(), lambda prompts, completions: map(len, completions), **options)
    for seed in (0, 1):
        apart = PolicyEvaluator(tiny_llama(seed), tiny_tokenizer(), inside.rewards, **options)
        policy = adapted(seed)
        found, expected = (evaluator.evaluate(policy, prompts) for evaluator in (inside, apart))
        assert found.reference.completions == expected.reference.completions
        assert found.summary()["win_over_reference"] == expected.summary()["win_over_reference"]


def test_the_reference_inside_an_adapter():
    policy = adapted(0)
    options = {"num_samples": 2, "max_new_tokens": 6, "progress": False}
    inside = PolicyEvaluator(None, tiny_tokenizer(), **options).evaluate(policy, ["The film was", "A"])
    apart = PolicyEvaluator(tiny_llama(0), tiny_tokenizer(), **options).evaluate(policy, ["The film was", "A"])
    assert inside.kl == pytest.approx(apart.kl, rel=1e-5) and (inside.kl > 0.1).all()
    assert inside.reference.kl.tolist() == [[0, 0], [0, 0]]
    assert [p.requires_grad for p in policy.parameters()] == ["lora" in name for name, _ in policy.named_parameters()]
    assert inside.summary().keys() == {
        f"{name}{end}"
        for name in ("kl", "kl_k1", "finished_share", "mean_length", "distinct_words")
        for end in ("", "_se")
    }
    with pytest.raises(ValueError, match="evaluated without a reward"):
        _ = inside.reward


def test_errors():
    evaluator = PolicyEvaluator(None, tiny_tokenizer())
    with pytest.raises(ValueError, match="`reference=None` means the reference inside a PEFT policy"):
        evaluator.evaluate(tiny_llama(), ["A"])
    with pytest.raises(ValueError, match="There are no prompts to evaluate on"):
        evaluator.evaluate(tiny_llama(), [])
    other, _ = few_tokens("llama")
    sequence_kl = SequenceKL(PolicyForward(tiny_llama(), "no"), PolicyForward(other, "no"), SamplingOptions())
    with pytest.raises(ValueError, match="logits of 384 tokens and the reference of 5, so there is no KL"):
        sequence_kl.of_completions([TokenizedCompletion([1], [2])])
    broken = tiny_llama()
    broken.lm_head.weight.data.fill_(math.nan)
    sequence_kl = SequenceKL(PolicyForward(tiny_llama(), "no"), PolicyForward(broken, "no"), SamplingOptions())
    with pytest.raises(ValueError, match="The KL of a completion is nan"):
        sequence_kl.of_completions([TokenizedCompletion([1], [2])])


def test_means_over_prompts():
    assert mean_over_prompts(np.array([[1.0, 3.0], [math.nan, 4.0], [math.nan, math.nan]])) == (3.0, 1.0)
    mean, se = mean_over_prompts(np.array([[1.0, 3.0]]))
    assert mean == 2 and math.isnan(se)
    assert all(map(math.isnan, mean_over_prompts(np.full((2, 1), math.nan))))


def test_wins_by_prompt():
    rewards, others = np.random.default_rng(0).integers(0, 4, (2, 7, 5)) / 3
    others = others[:, :3]
    pairs = rewards[:, :, None] - others[:, None]
    assert wins_by_prompt(rewards, others) == same(((pairs > 0) + 0.5 * (pairs == 0)).mean(axis=(1, 2)))


def test_paired_difference_is_the_t_interval():
    from scipy.stats import ttest_rel

    first, second = np.random.default_rng(0).normal(size=(2, 9, 4))
    found = paired_difference(first, second)
    expected = ttest_rel(first.mean(axis=1), second.mean(axis=1)).confidence_interval(0.95)
    assert (found.low, found.high) == same((expected.low, expected.high))
    assert found.mean == same(float((first - second).mean()))
    assert math.isnan(paired_difference(first[:1], second[:1]).low)
