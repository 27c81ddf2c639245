"""Forward and backward of a micro-batch do not wait for a GPU; on a CPU, for what would be on one."""

import pytest
import torch
from gpu.conftest import attention
from torch import Tensor

from benchmarks.synchronizations import SynchronizingCalls


@pytest.mark.parametrize("method", ["DPOPaper", "RankingDPO"])
@pytest.mark.parametrize("path", ["varlen", "flash"])
def test_a_micro_batch(path, method, build, device):
    with attention(device, path):
        trainer = build(method, path, gradient_accumulation_steps=2, global_batch_size=8)
        trainer.train()  # what is read once has been
        rows = [trainer.train_dataset[i] for i in range(4)]
        batch = trainer._prepare_inputs(trainer.data_collator(rows))
        # In the middle of an update, whose end reads the worst loss and the gradient norm
        trainer.accelerator.gradient_state._set_sync_gradients(False)
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                trainer.compute_loss(trainer.model_wrapped, batch).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            return
        weights = [weight for model in (trainer.model, trainer.ref_model) for weight in model.parameters()]
        with SynchronizingCalls(
            [*weights, *(value for value in batch.values() if isinstance(value, Tensor))]
        ) as calls:
            trainer.compute_loss(trainer.model_wrapped, batch).backward()
        assert not calls.found
