"""Options of a config that contradict each other or would do nothing."""

import pytest
from unit.configs import config, refused


class TestOptionsThatContradictOrDoNothing:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"discopop_tau": 0.1}, r"`discopop_tau=0.1` has no effect.*`loss_type='discopop'`"),
            ({"f_alpha_divergence_coef": 0.2}, r"`f_alpha_divergence_coef=0.2` .*`f_divergence_type='alpha_div"),
            ({"label_smoothing_factor": 0.1}, r"`label_smoothing_factor=0.1` .*you may mean `label_smoothing`"),
            ({"precompute_ref_batch_size": 3}, r"`precompute_ref_batch_size=3` .*`precompute_ref_log_probs=True`"),
            ({"ref_logps_cache_dir": "x"}, r"`ref_logps_cache_dir='x'` .*`precompute_ref_log_probs=True`"),
            ({"ref_model_mixup_alpha": 0.1}, r"`ref_model_mixup_alpha=0.1` .*`sync_ref_model=True`"),
            ({"ref_model_sync_steps": 3}, r"`ref_model_sync_steps=3` .*`sync_ref_model=True`"),
            (
                {"max_prompt_length": 4, "max_length": None},
                r"`max_prompt_length=4` has no effect with `max_length=None`",
            ),
            (
                {"max_prompt_length": 4, "tokenization": "joint"},
                r"`max_prompt_length=4` has no effect with `tokenization='joint'`.*`tokenization='separate'`",
            ),
            (
                {"prompt_truncation_mode": "keep_end", "tokenization": "joint"},
                r"`prompt_truncation_mode='keep_end'` has no effect with `tokenization='joint'`",
            ),
            (
                {"prompt_truncation_mode": "keep_end", "preset": "trl"},
                r"`prompt_truncation_mode='keep_end'` has no effect with `tokenization='joint'`",
            ),
            (
                {"truncation_mode": "keep_end"},
                r"`truncation_mode='keep_end'` has no effect with `tokenization='separate'`.*`prompt_truncation_mode=",
            ),
            (
                {"label_smoothing": 0.1, "loss_type": "ipo"},
                r"`label_smoothing=0.1` has no effect .*`loss_type=\['ipo'\]`",
            ),
            ({"label_smoothing": 0.1, "ld_alpha": 0.5}, r"`label_smoothing=0.1` has no effect .*`ld_alpha=0.5`"),
            ({"label_smoothing": 0.1, "use_weighting": True}, r"`label_smoothing=0.1` .*`use_weighting=True`"),
            (
                {"label_smoothing": 0.1, "f_divergence_type": "forward_kl"},
                r"`label_smoothing=0.1` .*`f_divergence_type='forward_kl'`",
            ),
            ({"label_smoothing": 0.1, "loss_type": ["sigmoid", "sft"]}, r"`label_smoothing=0.1` has no effect"),
            ({"reference_free": True, "loss_type": "ipo"}, r"`reference_free=True` .*\['ipo'\]"),
            ({"reference_free": True, "ld_alpha": 0.5}, r"`reference_free=True` .* `loss_type='sigmoid'`"),
            (
                {"reference_free": True, "precompute_ref_log_probs": True},
                r"`precompute_ref_log_probs=True` has no effect with `reference_free=True`. Leave it out",
            ),
            ({"reference_free": True, "sync_ref_model": True}, r"`sync_ref_model=True` has no effect"),
            ({"reference_free": True, "ref_logps_cache_dir": "x"}, r"`ref_logps_cache_dir='x'` has no effect"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
    )
    def test_refused(self, options, match):
        with refused(match):
            config(**options)

    @pytest.mark.parametrize(
        "options",
        [
            {"discopop_tau": 0.1, "loss_type": "discopop"},
            {"f_alpha_divergence_coef": 0.2, "f_divergence_type": "alpha_divergence"},
            {"precompute_ref_batch_size": 3, "precompute_ref_log_probs": True},
            {"ref_logps_cache_dir": "x", "precompute_ref_log_probs": True},
            {"ref_model_mixup_alpha": 0.1, "ref_model_sync_steps": 3, "sync_ref_model": True},
            {"label_smoothing": 0.1},
            {"label_smoothing": 0.1, "reference_free": True},
            {"label_smoothing": 0.1, "loss_type": ["sigmoid", "robust"]},
            {"label_smoothing": 0.1, "loss_type": "exo_pair"},
            {"loss_weights": [1.0], "label_smoothing": 0.1},
        ],
        ids=" ".join,
    )
    def test_taken_where_they_are_read(self, options):
        assert all(getattr(config(**options), name) in (value, [value]) for name, value in options.items())

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"beta": 0}, r"`beta=0` must be a finite number above 0"),
            ({"beta": -0.1}, r"`beta=-0.1` must be"),
            ({"beta": float("nan")}, r"`beta=nan` must be"),
            ({"beta": float("inf")}, r"`beta=inf` must be"),
            ({"label_smoothing": 0.5}, r"`label_smoothing=0.5` must lie in \[0, 0.5\)"),
            ({"label_smoothing": -0.1}, r"`label_smoothing=-0.1` must be at least 0"),
            ({"label_smoothing": float("nan")}, r"`label_smoothing=nan` must be a finite number"),
            ({"tokenization": "apart"}, r"`tokenization='apart'` does not exist. Choose one of 'separate', 'joint'"),
            (
                {"prompt_truncation_mode": "both"},
                r"`prompt_truncation_mode='both'` does not exist.*'keep_start', 'keep_en",
            ),
            ({"max_length": 1}, r"`max_length=1` leaves no room"),
            ({"max_length": 0}, r"`max_length=0` leaves no room"),
            ({"max_length": -5}, r"`max_length=-5` leaves no room"),
            ({"max_prompt_length": 0}, r"`max_prompt_length=0` must be above 0 and below `max_length=512`"),
            ({"max_prompt_length": 512}, r"`max_prompt_length=512` must be .*below `max_length=512`"),
            ({"optim": "rmsprp"}, r"`optim='rmsprp'` does not exist. Did you mean 'rmsprop'"),
            ({"lr_scheduler_type": "flat"}, r"`lr_scheduler_type='flat'` does not exist"),
            ({"warmup_steps": -1}, r"warmup_steps"),
            ({"bf16": True, "fp16": True}, r"fp16 and bf16"),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_values_that_do_not_exist(self, options, match):
        with refused(match):
            config(**options)

    @pytest.mark.parametrize(
        ("options", "plain"),
        [
            ({}, True),
            ({"loss_weights": [1.0]}, True),
            ({"label_smoothing": 0.2}, True),
            ({"reference_free": True}, True),
            ({"loss_weights": [0.5]}, False),
            ({"loss_type": "sigmoid_norm"}, False),
            ({"loss_type": ["sigmoid", "sft"]}, False),
            ({"f_divergence_type": "forward_kl"}, False),
            ({"ld_alpha": 1.0}, False),
            ({"use_weighting": True}, False),
        ],
        ids=str,
    )
    def test_plain_dpo_is_ours_and_the_rest_is_trl_s(self, options, plain):
        assert config(**options).is_plain_dpo is plain
