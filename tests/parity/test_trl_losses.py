"""Every objective of `trl.DPOConfig`, trained three updates by both trainers."""

import pytest
from harness import Case, cases, train_both


pytestmark = pytest.mark.usefixtures("float64")

_PLAIN_LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)


@cases(*(Case(name, {"loss_type": name}) for name in _PLAIN_LOSSES))
def test_loss_type(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


@cases(
    *(
        Case(name, {"loss_type": name, "label_smoothing": 0.1})
        for name in ("exo_pair", "robust", "aot", "aot_unpaired")
    ),
    Case("robust_0", {"loss_type": "robust"}),
    Case("robust_mixture", {"loss_type": ["sigmoid", "robust", "sft"], "label_smoothing": 0.1}),
    Case("exo_pair_mixture", {"loss_type": ["exo_pair", "hinge"], "label_smoothing": 1e-3, "loss_weights": [1, 0.5]}),
)
def test_label_smoothing(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


# A rate of 1e-3: the exponentials of forward KL overflow at larger steps.
@cases(
    *(
        Case(f"{name}-{loss_type}", {"f_divergence_type": name, "loss_type": loss_type, "learning_rate": 1e-3})
        for name in ("forward_kl", "js_divergence", "alpha_divergence")
        for loss_type in ("sigmoid", "ipo")
    ),
    *(
        Case(
            f"alpha_{coef}",
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": coef, "learning_rate": 1e-3},
        )
        for coef in (0.9, 1.0)
    ),
)
def test_f_divergence(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


@cases(
    *(Case(f"{alpha}", {"ld_alpha": alpha}) for alpha in (0.0, 0.5, 1.0)),
    Case("0.5-ipo", {"ld_alpha": 0.5, "loss_type": "ipo"}),
    Case("0.5-cached", {"ld_alpha": 0.5, "precompute_ref_log_probs": True}),
    Case("0.5-forward_kl", {"ld_alpha": 0.5, "f_divergence_type": "forward_kl", "learning_rate": 1e-3}),
)
def test_ld_alpha(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


# WPO weighs a pair by the mean probability of its tokens, about 1e-4 for a random model: no absolute tolerance.
@cases(*(Case(name, {"loss_type": name, "use_weighting": True}, loss_atol=0.0) for name in ("sigmoid", "ipo")))
def test_wpo_weighting(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


@cases(
    Case("mpo", {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}),
    Case("equal_weights", {"loss_type": ["sigmoid", "hinge"]}),
    Case("one_weight", {"loss_type": ["sigmoid"], "loss_weights": [0.5]}),
    Case("twice", {"loss_type": ["sigmoid", "sigmoid"], "loss_weights": [0.5, 0.25]}),
    Case("accumulated", {"loss_type": ["ipo", "sft"], "gradient_accumulation_steps": 2, "max_steps": 2}),
)
def test_several_losses(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)


@cases(
    Case("beta", {"beta": 0.5}),
    Case("discopop_tau", {"loss_type": "discopop", "discopop_tau": 0.5}),
)
def test_parameters(case, llama_folder, tmp_path):
    train_both(case, llama_folder, tmp_path)
