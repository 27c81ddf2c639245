"""The panels of metrics against the update: the metrics that each draws, and how to read it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trl_dpo_ext.report.drawing import ANSWERS, INK, REJECTED, draw_curves, draw_reference_line
from trl_dpo_ext.report.run_data import RunData


if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["CURVE_PANELS", "CurvePanel"]


@dataclass(frozen=True)
class CurvePanel:
    """
    A panel that draws metrics against the update, on one axis.

    Args:
        title (`str`): Title.
        metrics (`dict[str, tuple[str, str]]`): Label and color by name. A run without the first has no such panel.
        ylabel (`str`): Label of the value axis.
        reading (`str`): How to read it.
        bad_sign (`str`): What to look out for.
        level (`float`, *optional*): Value of a dotted line, such as that of chance.
        limits (`tuple[float, float]`, *optional*): Limits of the value axis.
        instead_of (`str`, *optional*): Metric that replaces this panel by another one, if the run has it.
    """

    title: str
    metrics: dict[str, tuple[str, str]]
    ylabel: str
    reading: str
    bad_sign: str
    level: float | None = None
    limits: tuple[float, float] | None = None
    instead_of: str = ""

    def is_for(self, run: RunData) -> bool:
        """Whether the run has the metrics of this panel."""
        return bool(run.curves(next(iter(self.metrics)))) and not run.curves(self.instead_of)

    def draw(self, run: RunData, axes: "Axes") -> None:
        """Draws the metrics that the run has."""
        if self.level is not None:
            draw_reference_line(axes, self.level)
        draw_curves(axes, run, self.metrics, self.ylabel)
        if self.limits is not None:
            axes.set_ylim(self.limits)


_SHARE = (-0.02, 1.02)

CURVE_PANELS = (
    CurvePanel(
        "Loss",
        {"loss": ("loss", INK)},
        "nats",
        "Should fall, in training and in evaluation. DPO starts at log 2 = 0.69, a ranking of K at log K!.",
        "evaluation rises while training falls (overfitting).",
        instead_of="kl_sequence",  # a loss of reinforcement learning shows no progress
    ),
    CurvePanel(
        "Reward of samples",
        {
            "reward": ("reward", INK),
            "objective": ("objective: reward - beta KL", REJECTED),
        },
        "reward",
        "Mean reward of the completions that the policy samples, and the objective (Eq. 3). Both should grow.",
        "the reward grows and the objective falls: the policy moves away from its reference for little.",
    ),
    CurvePanel(
        "KL of samples",
        {"kl_sequence": ("KL", INK)},
        "nats per completion",
        "Mean of log(policy/reference) of sampled completions, summed over their tokens; 0 at the start.",
        "it keeps growing while the reward stays the same: the policy moves without a gain.",
        level=0,
    ),
    CurvePanel(
        "Weight of the KL term",
        {"beta": ("beta", INK)},
        "beta",
        "Constant, unless a `KLTargetCallback` changes it: it grows while the KL is above the target.",
        "it keeps growing: the target is not reached.",
    ),
    CurvePanel(
        "Finished completions",
        {"completions/finished": ("finished", INK)},
        "share of completions",
        "Share of the sampled completions that end with an EOS token.",
        "it falls: completions become longer than `max_completion_length`.",
        limits=_SHARE,
    ),
    CurvePanel(
        "Length of completions",
        {"completions/mean_length": ("length", INK)},
        "tokens",
        "Mean length of the sampled completions.",
        "it grows with the reward: the reward may measure length.",
    ),
    CurvePanel(
        "Value loss",
        {"value_loss": ("loss", INK)},
        "squared reward",
        "Half the squared error of the value model. It should fall, and may rise while the reward changes fast.",
        "it stays high: advantages are noise. Raise `value_learning_rate`.",
    ),
    CurvePanel(
        "Pairs in the right order",
        {
            "rewards/accuracies": ("implicit reward", INK),
            "rewards/accuracies_from_length": ("rule: the longer completion", REJECTED),
        },
        "share of pairs",
        "Share of the pairs whose chosen completion has the larger implicit reward; dotted: chance.",
        "no better than the rule that the longer completion is preferred: the policy may only have learned length.",
        level=0.5,
    ),
    CurvePanel(
        "Reward margin",
        {
            "rewards/margins": ("best minus worst", INK),
            "rewards/margins_neighbors": ("neighboring ranks", REJECTED),
        },
        "reward",
        "Implicit reward of the chosen completion minus that of the rejected one; it should grow. In a ranking: "
        "the best minus the worst completion, and the mean difference between neighboring ranks.",
        "it grows while the share in the right order stays the same: the policy only becomes more confident.",
        level=0,
    ),
    CurvePanel(
        "Implicit rewards",
        {f"rewards/{name}": (label, color) for name, label, color in ANSWERS},
        "reward",
        "beta log(policy/reference) of either completion, 0 at the start; the two lines should move apart.",
        "both fall together: the policy moves away from all completions of the data.",
        level=0,
    ),
    CurvePanel(
        "Drift from the reference",
        {f"logps/{name}_drift": (label, color) for name, label, color in ANSWERS},
        "nats",
        "log(policy/reference), summed over a completion's tokens. Above 0, it is likelier than at the start.",
        "chosen completions keep falling (likelihood displacement): probability moves to others, in no pair.",
        level=0,
    ),
    CurvePanel(
        "Log-probability of completions",
        {f"logps/{name}": (label, color) for name, label, color in ANSWERS},
        "nats",
        "Log-probability under the policy, summed over the tokens of a completion.",
        "chosen completions keep falling: probability moves to completions that are not in the data.",
        instead_of="logps/chosen_drift",
    ),
    CurvePanel(
        "KL from the reference",
        {"kl_per_token": ("KL", INK)},
        "nats per token",
        "Estimate, on the completions of the data, of how far the policy is from its reference.",
        "it keeps growing while the share in the right order stays the same: the policy moves without a gain.",
        level=0,
    ),
    CurvePanel(
        "Weight of a pair in the gradient",
        {
            "rewards/gradient_weight": ("mean weight", INK),
            "rewards/gradient_weight_near_0": ("share of pairs below 0.05", REJECTED),
        },
        "weight, share",
        "Mean of sigmoid(rejected - chosen reward), the weight of a pair in DPO's gradient; 0.5 at first.",
        "the share near 0 approaches 1: there is nothing left to learn from these pairs.",
        limits=_SHARE,
    ),
    CurvePanel(
        "Reward and length",
        {"rewards/length_correlation": ("correlation", INK)},
        "correlation",
        "Correlation of implicit reward and length among the completions of a prompt; dotted: none.",
        "close to 1: the reward mostly measures length.",
        level=0,
        limits=(-1.05, 1.05),
    ),
    CurvePanel(
        "Calibration error",
        {"rewards/calibration_error": ("error", INK)},
        "probability",
        "Expected gap between the probability that the rewards give to an order and how often it is right; 0 is best.",
        "it grows while the share in the right order stays the same: the rewards are overconfident.",
        level=0,
    ),
    CurvePanel(
        "Rank correlation",
        {"rewards/kendall_tau": ("tau", INK)},
        "Kendall's tau-b",
        "Agreement between the order by implicit reward and the observed order: 1 is the same, 0 none, -1 reversed.",
        "evaluation stays the same or falls while training rises (overfitting).",
        level=0,
    ),
    CurvePanel(
        "Rankings",
        {
            "rewards/top1_accuracies": ("best completion first", INK),
            "rewards/order_probabilities": ("probability of the order", REJECTED),
        },
        "share of rankings, probability",
        "How often the best completion has the largest reward; mean probability of the observed order (Eq. 20).",
        "the share of the best completions does not improve while other metrics do: only the low ranks are learned.",
        limits=_SHARE,
    ),
    CurvePanel(
        "Tokens predicted",
        {"mean_token_accuracy": ("accuracy", INK)},
        "share of tokens",
        "Share of the tokens of chosen completions that are the policy's first choice.",
        "it keeps falling: the policy forgets how to write chosen completions.",
    ),
    CurvePanel(
        "Entropy",
        {"entropy": ("entropy", INK)},
        "nats per token",
        "Uncertainty of the policy about the next token.",
        "it collapses towards 0 (the policy repeats itself) or climbs without end (it becomes noise).",
    ),
    CurvePanel(
        "Mean logits",
        {f"logits/{name}": (label, color) for name, label, color in ANSWERS},
        "logit",
        "Mean of the policy's logits over vocabulary and tokens of a completion. Only changes matter: adding a "
        "constant to all logits of a token leaves its probabilities as they are.",
        "jumps, or growth without end: training is unstable.",
    ),
    CurvePanel(
        "Gradient norm",
        {"grad_norm": ("norm", INK)},
        "norm before clipping",
        "Norm of the gradient of an update.",
        "spikes, or growth without end: lower the learning rate.",
    ),
    CurvePanel(
        "Learning rate",
        {"learning_rate": ("rate", INK)},
        "per update",
        "The schedule: warm-up, then constant or falling.",
        "the run ends during warm-up.",
    ),
)
