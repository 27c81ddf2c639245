"""`completion_logps` against loops over full logits, and against numbers printed by the authors' own code."""

import json
from pathlib import Path

import pytest
import torch
from closeness import EXACT, assert_within_rounding, in_float64, same
from tiny import MODELS, tiny_llama
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from trl_dpo_ext.batches import stacked_to_pairs
from trl_dpo_ext.logps import completion_logps
from trl_dpo_ext.trainers.forward.trl_losses import ld_logps


pytestmark = pytest.mark.usefixtures("float64")

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
FUSED = ("log_probs", "entropy", "mean_logits", "is_top1")

# Prompts of 3 and 6 tokens; answers of 5 and 1, 2 and 4 tokens
ROWS = [
    {"prompt_ids": [40, 41, 42], "chosen_ids": [50, 51, 52, 53, 2], "rejected_ids": [2]},
    {"prompt_ids": [60, 61, 62, 63, 64, 65], "chosen_ids": [70, 2], "rejected_ids": [80, 81, 82, 2]},
]


def fused(model: PreTrainedModel) -> PreTrainedModel:
    add_fused_lm_head(model, outputs=FUSED)
    return model


def collate(rows: list[dict], pad_token_id: int = 0, pad_to_multiple_of: int | None = None) -> dict[str, torch.Tensor]:
    return DataCollatorForPreference(pad_token_id=pad_token_id, pad_to_multiple_of=pad_to_multiple_of)(rows)


@torch.no_grad()
def token_logps(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> list[float]:
    """One forward a sequence, without padding; one number a token of the answer."""
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].double()
    logps = logits.log_softmax(dim=-1)
    return [logps[len(prompt) + t - 1, token].item() for t, token in enumerate(answer)]


def by_hand(model: PreTrainedModel, rows: list[dict]) -> list[list[float]]:
    """Log-probabilities of the answers' tokens, in the order `[all chosen; all rejected]`."""
    return [
        token_logps(model, row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected") for row in rows
    ]


class TestAgainstALoop:
    @pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "mistral", "gemma2"])
    def test_sums(self, name):
        model = fused(MODELS[name]())
        scored = completion_logps(model, collate(ROWS))
        expected = torch.tensor([sum(tokens) for tokens in by_hand(model, ROWS)])
        torch.testing.assert_close(scored.logps.detach(), expected, rtol=EXACT, atol=EXACT)

    @pytest.mark.float32
    @pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "mistral", "gemma2"])
    def test_float32(self, name):
        """As near to float64 as the logits of the model are, a sequence at a time and added up in float64."""
        scored = completion_logps(fused(MODELS[name]()), collate(ROWS))
        assert scored.logps.dtype == torch.float32
        trusted = torch.tensor([sum(tokens) for tokens in by_hand(MODELS[name](), ROWS)])
        with in_float64():
            exact = torch.tensor([sum(tokens) for tokens in by_hand(MODELS[name](), ROWS)])
        assert_within_rounding({"logps": scored.logps}, {"logps": trusted}, {"logps": exact})
        with pytest.raises(AssertionError, match="from float64"):
            assert_within_rounding({"logps": scored.logps * (1 + 1e-4)}, {"logps": trusted}, {"logps": exact})

    def test_positions_that_count_are_the_answers(self):
        scored = completion_logps(fused(tiny_llama()), collate(ROWS))
        expected = torch.zeros(4, 9, dtype=torch.bool)  # N = 4, T = 10
        for row, (start, length) in enumerate([(3, 5), (6, 2), (3, 1), (6, 4)]):
            expected[row, start - 1 : start - 1 + length] = True  # the answer's first token is predicted one earlier
        assert torch.equal(scored.mask, expected)
        for values in (scored.entropy, scored.mean_logits, scored.is_top1):
            assert values.shape == (4, 9)
            assert not values[~expected].any()
        assert scored.aux_loss is None

    def test_other_values_of_tokens(self):
        model = fused(tiny_llama())
        batch = collate(ROWS)
        scored = completion_logps(model, batch)
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        probabilities = logits.softmax(dim=-1)
        entropy = -(probabilities * probabilities.log()).sum(dim=-1)
        top = logits.argmax(dim=-1) == batch["input_ids"][:, 1:]
        torch.testing.assert_close(scored.entropy[scored.mask], entropy[scored.mask], rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(
            scored.mean_logits.detach()[scored.mask], logits.mean(dim=-1)[scored.mask], rtol=EXACT, atol=EXACT
        )
        assert torch.equal(scored.is_top1[scored.mask].bool(), top[scored.mask])
        assert not scored.entropy.requires_grad

    def test_one_token(self):
        rows = [{"prompt_ids": [7], "chosen_ids": [9], "rejected_ids": [2]}]
        model = fused(tiny_llama())
        scored = completion_logps(model, collate(rows))
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([[7]])).logits[0, 0].log_softmax(dim=-1)[[9, 2]]
        assert scored.mask.tolist() == [[True], [True]]
        torch.testing.assert_close(scored.logps.detach(), expected, rtol=EXACT, atol=EXACT)

    def test_the_gradient_flows_to_every_weight(self):
        model = fused(tiny_llama())
        completion_logps(model, collate(ROWS)).logps.sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


class TestInvariance:
    def test_padding_changes_nothing(self):
        model = fused(tiny_llama())
        short = completion_logps(model, collate(ROWS)).logps
        padded = completion_logps(model, collate(ROWS, pad_token_id=5, pad_to_multiple_of=32)).logps
        torch.testing.assert_close(padded, short, rtol=EXACT, atol=EXACT)

    def test_a_neighbour_changes_nothing(self):
        model = fused(tiny_llama())
        together = stacked_to_pairs(completion_logps(model, collate(ROWS)).logps)
        for row, expected in zip(ROWS, together, strict=True):
            alone = completion_logps(model, collate([row])).logps
            torch.testing.assert_close(alone, expected, rtol=EXACT, atol=EXACT)

    def test_only_the_answer_is_scored(self):
        # A prompt twice as long adds a context, not a term: the sum is that of the answer's tokens
        model = fused(tiny_llama())
        rows = [dict(ROWS[0], prompt_ids=ROWS[0]["prompt_ids"] * 2)]
        scored = completion_logps(model, collate(rows))
        expected = [sum(tokens) for tokens in by_hand(model, rows)]
        assert scored.logps.tolist() == same(expected)
        assert scored.mask.sum(dim=1).tolist() == [5, 1]

    def test_reference_columns_and_mask_do_not_reach_the_model(self):
        seen = {}
        model = fused(tiny_llama())

        def recorded(**kwargs):
            seen.update(kwargs)
            return model(**kwargs)

        batch = collate([dict(row, ref_chosen_logps=-1.0, ref_rejected_logps=-2.0) for row in ROWS])
        assert "ref_chosen_logps" in batch
        completion_logps(recorded, batch)
        assert set(seen) == {"input_ids", "attention_mask", "use_cache", "labels", "fused_lm_head"}
        assert torch.equal(seen["labels"] != -100, batch["completion_mask"].bool())


class TestLengthDesensitized:
    # Lengths (5, 1) and (2, 4): 1 and 2 tokens are shared
    SHARED = [1, 2, 1, 2]

    @pytest.fixture
    def model(self):
        return fused(tiny_llama())

    @torch.no_grad()
    def scored(self, model: PreTrainedModel, alpha: float) -> list[float]:
        """Of all chosen answers, then of all rejected ones."""
        policy = completion_logps(model, collate(ROWS)).regrouped(stacked_to_pairs)
        return ld_logps(policy.token_logps, policy.mask, alpha).T.flatten().tolist()

    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    def test_by_hand(self, model, alpha):
        expected = [
            sum(tokens[:shared]) + alpha * sum(tokens[shared:])
            for tokens, shared in zip(by_hand(model, ROWS), self.SHARED, strict=True)
        ]
        assert self.scored(model, alpha) == same(expected)

    def test_at_1_every_token_counts_once(self, model):
        assert self.scored(model, 1.0) == same(completion_logps(model, collate(ROWS)).logps.tolist())


def test_stacked_to_pairs():
    assert stacked_to_pairs(torch.tensor([1, 2, 3, 10, 20, 30])).tolist() == [[1, 10], [2, 20], [3, 30]]
    assert stacked_to_pairs(torch.arange(12).view(4, 3)).tolist() == [
        [[0, 1, 2], [6, 7, 8]],
        [[3, 4, 5], [9, 10, 11]],
    ]


@pytest.mark.float32
class TestGolden:
    """The authors' logits and labels, as hidden states under an identity for an LM head."""

    LABELS = torch.tensor(GOLDEN["inputs"]["labels"])  # (6, 9)

    def scored(self, logits: torch.Tensor):
        size = logits.size(-1)
        config = LlamaConfig(
            vocab_size=size,
            hidden_size=size,
            head_dim=2,
            num_attention_heads=1,
            num_hidden_layers=1,
            intermediate_size=1,
        )
        model = LlamaForCausalLM(config).to(logits.dtype)
        torch.nn.init.eye_(model.lm_head.weight)
        model.model.forward = lambda *args, **kwargs: BaseModelOutputWithPast(last_hidden_state=logits)
        batch = {"input_ids": self.LABELS.clamp(min=0), "completion_mask": (self.LABELS != -100).long()}
        return completion_logps(fused(model), batch)

    def test_sums_and_gradients(self):
        logits = torch.tensor(GOLDEN["inputs"]["logits"], requires_grad=True)  # (6, 9, 11)
        expected = GOLDEN["get_batch_logps"]["sum"]["float32"]
        scored = self.scored(logits)
        scored.logps.sum().backward()
        torch.testing.assert_close(
            scored.logps.detach(), torch.tensor(expected["logps"]), **GOLDEN["tolerance"]["float32"]
        )
        torch.testing.assert_close(
            logits.grad, torch.tensor(expected["grad_logits"]), **GOLDEN["tolerance"]["float32"]
        )

    def test_a_row_without_labels_scores_zero(self):
        logits = torch.tensor(GOLDEN["inputs"]["logits"])
        assert (self.LABELS[3] == -100).all()
        assert self.scored(logits).logps[3].item() == 0.0 == GOLDEN["get_batch_logps"]["sum"]["float32"]["logps"][3]

    def test_a_label_of_the_first_token_does_not_count(self):
        assert self.LABELS[4, 0] != -100 and self.LABELS[5, 0] != -100
        assert self.scored(torch.tensor(GOLDEN["inputs"]["logits"])).mask.sum(dim=1)[4:].tolist() == [8, 1]

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision_logits_are_summed_in_float32(self, dtype):
        logits = torch.tensor(GOLDEN["inputs"]["logits"]).to(getattr(torch, dtype))
        expected = torch.tensor(GOLDEN["get_batch_logps"][f"sum_from_{dtype}_logits"]["float32"]["logps"])
        logps = self.scored(logits).logps.detach()
        assert logps.dtype == torch.float32
        torch.testing.assert_close(logps, expected, **GOLDEN["tolerance"]["float32"])
