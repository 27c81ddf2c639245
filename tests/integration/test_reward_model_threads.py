"""A reward model in several threads, and in another process."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from peft import LoraConfig, get_peft_model
from tiny import preference_rows, tiny_gpt2, tiny_llama, tiny_tokenizer

from trl_dpo_ext import ImplicitRewardModel


def reward_models(kind: str) -> list[ImplicitRewardModel]:
    """Two that share a model, and differ in beta."""
    if kind == "adapter":
        policy = get_peft_model(tiny_llama(0), LoraConfig(r=4, init_lora_weights=False))
        return [ImplicitRewardModel(policy, None, tiny_tokenizer(), beta=beta) for beta in (0.1, 0.2)]
    policy, reference = tiny_gpt2(1).train(), tiny_gpt2(0)
    return [ImplicitRewardModel(policy, reference, tiny_tokenizer(), beta=beta) for beta in (0.1, 0.2)]


@pytest.mark.parametrize("kind", ["adapter", "two models"])
def test_threads_get_the_scores_of_one(kind):
    models = reward_models(kind)
    rows = list(preference_rows(12))
    calls = [
        (model, [row["prompt"] for row in some], [[row["chosen"], row["rejected"]] for row in some])
        for some in (rows[start : start + 2] for start in range(12))
        for model in models
    ]
    expected = [model.score(*words) for model, *words in calls]
    barrier = threading.Barrier(4)

    def score(number: int) -> list:
        barrier.wait()
        return [model.score(*words) for model, *words in calls[number::4]]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(score, range(4)))
    assert [found[n % 4][n // 4] for n in range(len(calls))] == expected
    assert models[0].policy.training  # as it was


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("kind", ["adapter", "two models"])
def test_a_copy_scores_alike(kind, copied):
    model = reward_models(kind)[1]
    words = (["The film was"], [[" superb.", " dull.", " a delight from the first scene."]])
    expected = model.score(*words)
    other = copied(model)
    assert other.policy is not model.policy and other.score(*words) == expected == model.score(*words)
    assert (other.beta, other.row_options) == (0.2, model.row_options)
