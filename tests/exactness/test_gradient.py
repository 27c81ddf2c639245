"""Invariant 4, on a model's parameters, and invariant 5 for pairs: training recovers the closed form."""

import math
from itertools import combinations

import pytest
import torch
from closeness import EXACT
from datasets import Dataset
from tiny import preference_rows, tiny_llama, tiny_tokenizer

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer
from trl_dpo_ext.batches import stacked_to_pairs
from trl_dpo_ext.logps import completion_logps
from trl_dpo_ext.theory import optimal_policy


@pytest.mark.usefixtures("float64")
def test_gradient_of_section_4(tmp_path):
    args = DPOPaperConfig(str(tmp_path), use_cpu=True, report_to="none", gradient_checkpointing=False, beta=0.3)
    trainer = DPOPaperTrainer(tiny_llama(1), tiny_llama(2), args, None, preference_rows(1), None, tiny_tokenizer())
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    parameters = list(trainer.model.parameters())

    def gradient(value: torch.Tensor) -> list[torch.Tensor]:
        return torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)

    trainer.model.train()
    reference = torch.stack(trainer.compute_ref_log_probs(trainer.ref_model, batch), dim=1)
    logps = stacked_to_pairs(completion_logps(trainer.model, batch).logps)
    r_w, r_l = (0.3 * (logps - reference))[0].detach()
    loss_gradient = gradient(trainer.compute_loss(trainer.model, dict(batch)))
    for ours, chosen, rejected in zip(loss_gradient, gradient(logps[0, 0]), gradient(logps[0, 1]), strict=True):
        expected = -0.3 * torch.sigmoid(r_l - r_w) * (chosen - rejected)
        torch.testing.assert_close(ours, expected, rtol=EXACT, atol=EXACT * float(expected.abs().max()))


@pytest.mark.slow
def test_training_recovers_the_optimal_policy(tmp_path):
    """Preferences drawn in exact Bradley-Terry proportions from a known reward end at Eq. 4."""
    answers, odds, beta = [" a", " b", " c", " d"], [3, 9, 3, 1], 1.0
    rewards = torch.tensor(odds).log()
    rows = []
    for i, j in combinations(range(len(answers)), 2):
        wins = 20 * odds[i] // (odds[i] + odds[j])  # 20 is a multiple of every sum of two odds in lowest terms
        rows += [{"prompt": "Say:", "chosen": answers[i], "rejected": answers[j]}] * wins
        rows += [{"prompt": "Say:", "chosen": answers[j], "rejected": answers[i]}] * (20 - wins)
    args = DPOPaperConfig(
        str(tmp_path),
        beta=beta,
        optim="adamw_torch",
        learning_rate=1e-2,
        warmup_steps=0,
        per_device_train_batch_size=len(rows),
        global_batch_size=len(rows),
        max_steps=60,
        num_train_epochs=60,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    trainer = DPOPaperTrainer(
        tiny_llama(), None, args, None, Dataset.from_list(rows), processing_class=tiny_tokenizer()
    )

    @torch.no_grad()
    def answer_logprobs(model: torch.nn.Module) -> torch.Tensor:
        """Log-probabilities of the answers, normalized over the four: DPO says nothing of other texts."""
        probe = Dataset.from_list(
            [{"prompt": "Say:", "chosen": answer, "rejected": answers[i - 1]} for i, answer in enumerate(answers)]
        )
        prepared = trainer._prepare_dataset(probe, trainer.processing_class, args, "probe")
        batch = trainer._prepare_inputs(trainer.data_collator(list(prepared)))
        return stacked_to_pairs(torch.cat(trainer.compute_ref_log_probs(model, batch)))[:, 0].log_softmax(-1)

    expected = optimal_policy(answer_logprobs(trainer.ref_model), rewards, beta=beta)
    start = float((expected.exp() * (expected - answer_logprobs(trainer.model))).sum())
    trainer.train()
    end = float((expected.exp() * (expected - answer_logprobs(trainer.model))).sum())
    assert start > 0.05 and math.isfinite(start)
    assert end < 1e-3
