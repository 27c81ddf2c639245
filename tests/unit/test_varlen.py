"""Segments of a layout, and FlashAttention on them, against the mask of the layout."""

import pytest
import torch
from flash_on_cpu import flash_on_cpu
from torch import Tensor
from unit.test_layouts import batch_of, random_batch

from trl_dpo_ext.batches import Batch
from trl_dpo_ext.shared_prompt.cascade import cascade, cascade_of
from trl_dpo_ext.shared_prompt.layout import Layout, lay_out
from trl_dpo_ext.shared_prompt.masks import dense_mask, window_mark, window_of
from trl_dpo_ext.shared_prompt.segmented import segmented
from trl_dpo_ext.shared_prompt.segments import segments_of
from trl_dpo_ext.shared_prompt.varlen import gather_keys, half, has_kernel, varlen


CPU = torch.device("cpu")
EXACT = 1e-12  # of float64, where the numbers are near 1


def layout_of(seed: int, shares: bool = True, budget: int | None = None, multiple: int = 1) -> Layout:
    groups = Batch.of(random_batch(seed)).groups
    return lay_out(groups if shares else groups.apart(), budget, CPU, multiple)


def states_of(layout: Layout, heads: int = 4, key_heads: int = 2, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = layout.tokens.numel()
    return [
        torch.randn(tokens, n, size, dtype=torch.float64, generator=generator).requires_grad_()
        for n in (heads, key_heads, key_heads)
    ]


def by_mask(layout: Layout, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    rows, width = layout.tokens.shape
    repeats = query.size(1) // key.size(1)
    q, k, v = (
        states.unflatten(0, (rows, width)).transpose(1, 2).repeat_interleave(times, 1)
        for states, times in ((query, 1), (key, repeats), (value, repeats))
    )
    scores = (q @ k.transpose(2, 3) * 8**-0.5).masked_fill(~dense_mask(layout, window), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(0, 1)


class TestSegments:
    def test_by_hand(self):
        groups = Batch.of(batch_of(([11, 12, 13], [[21, 22, 23], [31], [41, 42]]), ([14], [[51, 52]]))).groups
        layout = lay_out(groups, None, CPU)
        segments = segments_of(layout)
        # prompt 0 1 2, y_1 3 4, y_2 none (its last token predicts nothing), y_3 5; prompt 6, y_1 7
        assert layout.segments == ((3, (2, 0, 1)), (1, (1,)))
        assert segments.cu_q.tolist() == [0, 5, 6, 8]
        assert segments.cu_k.tolist() == [0, 5, 9, 11]
        assert (segments.max_q, segments.max_k) == (5, 4 + 1)
        assert segments.keys.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
        assert segments.cu_q.dtype == segments.cu_k.dtype == torch.int32

    def test_nothing_is_gathered_where_nothing_is_shared(self):
        assert segments_of(layout_of(0, shares=False)).keys is None

    def test_made_once(self):
        groups = Batch.of(random_batch(0)).groups
        one, other = (segments_of(lay_out(groups, None, CPU)) for _ in range(2))
        assert one is other

    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize("budget", [None, 0, 25])
    @pytest.mark.parametrize("shares", [True, False])
    def test_they_see_what_the_mask_sees(self, seed, budget, shares):
        layout = layout_of(seed, shares, budget, multiple=16 if seed % 2 else 1)
        segments = segments_of(layout)
        tokens = layout.tokens.numel()
        seen = torch.zeros(tokens, tokens, dtype=torch.bool)
        keys = torch.arange(tokens) if segments.keys is None else segments.keys
        cu_q, cu_k = segments.cu_q.tolist(), segments.cu_k.tolist()
        for a, b, c, d in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False):
            for query in range(a, b):
                seen[query, keys[c : d - (b - 1 - query)]] = True
        # Its rows are blocks of the flattened tokens. Padding sees padding, one way or another
        expected = torch.block_diag(*dense_mask(layout)[:, 0].long()).bool()
        real = layout.groups.flatten() >= 0
        assert torch.equal(seen[real], expected[real])


def test_the_mark_of_a_window():
    layout = layout_of(0)
    assert [window_of(window_mark(layout, window)) for window in (None, 1, 4096)] == [None, 1, 4096]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_attention_and_gradients(window, heads, seed):
    layout = layout_of(seed)
    states = states_of(layout, *heads)
    weights = torch.randn(layout.tokens.numel(), heads[0], 8, dtype=torch.float64)
    with flash_on_cpu() as calls:
        found = varlen(*states, segments_of(layout), window=window)
        gradients = torch.autograd.grad((found * weights).sum(), states)
    assert calls == {"forward": 1, "backward": 1}
    expected = by_mask(layout, *states, window)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    for one, other in zip(gradients, torch.autograd.grad((expected * weights).sum(), states), strict=True):
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)
    rows, width = layout.tokens.shape
    q, k, v = (values.unflatten(0, (rows, width)).transpose(1, 2) for values in states)
    torch.testing.assert_close(segmented(q, k, v, layout, window).flatten(0, 1), found, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_two_calls_without_copied_keys(heads, scale, seed):
    """Merged by their log-sum-exp, they are the one call on gathered keys, and so are the gradients."""
    layout = layout_of(seed, budget=25 if seed % 2 else None)
    states = states_of(layout, *heads)
    weights = torch.randn(layout.tokens.numel(), heads[0], 8, dtype=torch.float64)
    with flash_on_cpu() as calls:
        found, expected = (
            cascade(*states, cascade_of(layout), scale),
            varlen(*states, segments_of(layout), scale=scale),
        )
        ours, theirs = (torch.autograd.grad((output * weights).sum(), states) for output in (found, expected))
    assert calls == {"forward": 3, "backward": 3}
    for one, other in zip((found, *ours), (expected, *theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)


def test_two_calls_where_many_keys_would_be_copied():
    """At 1024/128 tokens with K = 8 it is 4.5 keys a token; pairs never have as many."""
    for prompt, completion, k, expected in ((64, 8, 8, True), (30, 30, 4, False), (64, 8, 2, False)):
        groups = Batch.of(batch_of((list(range(1, prompt + 1)), [list(range(completion))] * k))).groups
        layout = lay_out(groups, None, CPU)
        assert (segments_of(layout, merges=True).cascade is not None) is expected
        assert segments_of(layout).cascade is None  # the user's kernel has no use for it


@pytest.mark.parametrize("fault", [{"upper_left": True}, {"window_shift": 1}], ids=str)
def test_a_wrong_kernel_is_seen(fault):
    """The comparison above fails for the alignment that dense `sdpa` has, and for a window that is off by one."""
    layout = layout_of(0)
    states = states_of(layout)
    with flash_on_cpu(**fault):
        found = varlen(*states, segments_of(layout), window=3)
    assert (found - by_mask(layout, *states, 3)).abs().max() > 1e-2


def test_gradients_of_gathered_keys_are_summed_in_float32():
    """256 completions add 1 to a prompt that stands at 256: in bfloat16 every sum would round back to 256."""
    states = torch.zeros(2, 1, 8, dtype=torch.bfloat16, requires_grad=True)
    keys = torch.zeros(512, dtype=torch.long)
    gather_keys(states, keys).backward(torch.ones(512, 1, 8, dtype=torch.bfloat16))
    assert states.grad[:, 0, 0].tolist() == [512.0, 0.0]


def test_states_are_cast_to_the_dtype_of_autocast():
    states = (torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16))
    assert {values.dtype for values in half(*states)} == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.float16):
        assert {values.dtype for values in half(*states)} == {torch.float16}


def test_the_kernel_is_known_by_its_presence():
    assert not has_kernel(CPU)
    with flash_on_cpu():
        assert has_kernel(CPU)
    assert not has_kernel(CPU)
