r"""
The pass that makes samples final: the same bits whatever the batches of the draft were.

Logits depend on the batch in their last bits, because kernels add up in an order that depends on its shape. So a
sample is defined by batches of a fixed shape. Samples of a part of the prompts, in a fixed order, form rows of prompt,
completion and padding on the right. In such a batch the logits before token t depend on tokens before t alone, to the
last bit: causal attention gives later tokens the weight 0, and every other layer treats positions apart. With them

$$ y_t = \arg\max_v p(v | x, y_{<t}) / E_{tv} $$

defines every token of every sample by those before it. A draft is compared with this at all its tokens in one forward
pass. The first token that differs is replaced and final, and the rest is drafted anew. It ends with the one sample
that the definition has, whatever the draft was. A good draft needs one pass.

The shape of a batch may not depend on the lengths of completions, which are known only at their ends. So that short
ones do not cost as much as `max_new_tokens`, a first stage goes up to half of them, and a second one continues the
samples that have not ended.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from trl_dpo_ext.evaluation.sampling.drawing import Step, draw
from trl_dpo_ext.evaluation.sampling.options import SamplingOptions
from trl_dpo_ext.evaluation.sampling.policy_forward import PolicyForward
from trl_dpo_ext.evaluation.sampling.sequences import Continuation, padded


__all__ = ["ExactPass", "stages"]

# Limits of a batch. Samples depend on them in their last bits, so they are not options
_MAX_TOKENS = 4096
_MAX_LOGITS = 2**24
_SHORTEST_STAGED = 32  # tokens


def stages(max_new_tokens: int) -> list[int]:
    """Numbers of tokens up to which samples are made final, one after another."""
    return [*([max_new_tokens // 2] if max_new_tokens >= _SHORTEST_STAGED else []), max_new_tokens]


class ExactPass:
    """
    Makes drafted tokens final, or replaces them.

    On a CPU every batch is computed by one thread, and as many at once as there are threads, so that the number of
    threads does not change a bit either.

    Args:
        forward ([`~trl_dpo_ext.evaluation.sampling.policy_forward.PolicyForward`]):
            Policy.
        options ([`~trl_dpo_ext.evaluation.sampling.options.SamplingOptions`]):
            Options.
        pad_id (`int`):
            Any token id, for padding.
        vocabulary (`int`):
            Number of logits of a position.
    """

    def __init__(self, forward: PolicyForward, options: SamplingOptions, pad_id: int, vocabulary: int):
        self._forward = forward
        self._options = options
        self._pad_id = pad_id
        self._vocabulary = vocabulary

    def batches(self, samples: Sequence[Continuation], end: int) -> Iterator[list[Continuation]]:
        """Divides the samples of a stage into the batches that define them."""
        batch: list[Continuation] = []
        for sample in sorted(samples, key=lambda sample: len(sample.prompt_ids)):
            shortest = len((batch or [sample])[0].prompt_ids)
            rows, longest = len(batch) + 1, len(sample.prompt_ids)
            num_logits = rows * (longest - shortest + end + 1) * self._vocabulary
            if batch and (rows * (longest + end) > _MAX_TOKENS or num_logits > _MAX_LOGITS):
                yield batch
                batch = []
            batch.append(sample)
        if batch:
            yield batch

    def run(self, batches: Sequence[list[Continuation]], end: int) -> None:
        """
        Makes the tokens of batches final up to the first of each sample that is replaced.

        Raises:
            ValueError: If logits are not finite.
        """
        if self._forward.device.type != "cpu":
            for batch in batches:
                self._run(batch, end)
            return
        num_threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(self._run, batches, [end] * len(batches)))
        finally:
            torch.set_num_threads(num_threads)  # the last call counts for threads that start later

    def _run(self, batch: Sequence[Continuation], end: int) -> None:
        shortest = min(len(sample.prompt_ids) for sample in batch)
        width = max(len(sample.prompt_ids) for sample in batch) + end
        rows = [[*sample.prompt_ids, *sample.token_ids] for sample in batch]
        logits, _ = self._forward(padded(rows, width, self._pad_id), width - shortest + 1, use_cache=False)
        for row, sample in zip(logits, batch, strict=True):
            if not sample.is_final(end):
                self._compare(row[len(sample.prompt_ids) - shortest :], sample, end)

    def _compare(self, logits: torch.Tensor, sample: Continuation, end: int) -> None:
        # An unfinished draft gets one more token
        stop = len(sample.token_ids) + (not sample.is_drafted(end))
        numbers = range(sample.num_final, stop)
        steps = [Step(sample.prompt_id, sample.sample, number) for number in numbers]
        found = draw(logits[numbers.start : stop], steps, self._options)
        if not found.logps.isfinite().all():
            raise ValueError(
                f"The logits of prompt {sample.prompt_id} are not finite. Look for NaN in the weights, or use a dtype "
                "with a larger range."
            )
        for number, token, logp in zip(numbers, found.tokens.tolist(), found.logps.tolist(), strict=True):
            is_as_drafted = sample.token_ids[number : number + 1] == [token]
            sample.logp += logp
            sample.num_final = number + 1
            if not is_as_drafted:
                sample.token_ids[number:] = [token]
                return
