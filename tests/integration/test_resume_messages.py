"""What a run says when it is resumed from a checkpoint of another run, or started among one's checkpoints."""

import json
from pathlib import Path

import pytest
from integration.conftest import TINY, assert_fits, updates
from tiny import lora_config, preference_rows

import trl_dpo_ext
from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer


SAVES = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3}
FROM_THE_WEIGHTS = "`model_name_or_path: {0}` ... `resume_from_checkpoint`."


@pytest.fixture
def checkpoint_of(trained, llama_folder):
    """Trains two of three updates with these options, and returns the checkpoint."""

    def of(options=None, **kwargs):
        trainer = trained(llama_folder, SAVES | {"max_steps": 2} | (options or {}), **kwargs)
        return f"{trainer.args.output_dir}/checkpoint-2"

    return of


@pytest.fixture
def refused(trained, llama_folder):
    """The error of resuming from a folder."""

    def of(folder, options=None, **kwargs):
        with pytest.raises(ValueError) as error:
            trained(llama_folder, SAVES | {"folder": "other"} | (options or {}), resume=folder, **kwargs)
        return str(error.value)

    return of


def forget(checkpoint, *keys):
    """Makes the state of a checkpoint that of an older version."""
    path = Path(checkpoint, "trl_dpo_ext.json")
    state = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in state.items() if name not in keys}))


class TestOtherWeights:
    def test_all_weights_into_an_adapter(self, checkpoint_of, refused):
        folder = checkpoint_of()
        assert_fits(
            refused(folder, peft_config=lora_config(target_modules=["q_proj"])),
            f"The checkpoint {folder} ... all weights ... adapter (peft_type='LORA', r=4, target_modules=['q_proj'])"
            " ... leave out `peft_config` (`use_peft`) ... " + FROM_THE_WEIGHTS.format(folder),
        )

    def test_an_adapter_into_all_weights(self, checkpoint_of, refused):
        folder = checkpoint_of(peft_config=lora_config(target_modules=["q_proj"]))
        assert_fits(
            refused(folder),
            f"The checkpoint {folder} ... adapter (peft_type='LORA', r=4, target_modules=['q_proj']) ... all weights"
            " ... adapter as `peft_config`. ... " + FROM_THE_WEIGHTS.format(folder),
        )

    def test_an_adapter_of_another_shape(self, checkpoint_of, refused):
        folder = checkpoint_of(peft_config=lora_config(target_modules=["q_proj"]))
        assert_fits(
            refused(folder, peft_config=lora_config(r=2)),
            f"The checkpoint {folder} ... an adapter (r=4, target_modules=['q_proj']) ... "
            "an adapter (r=2, target_modules=['q_proj', 'v_proj']) ... (`peft_config`). ... "
            + FROM_THE_WEIGHTS.format(folder),
        )

    def test_the_same_adapter_in_another_order_is_resumed(self, checkpoint_of, trained, llama_folder):
        folder = checkpoint_of(peft_config=lora_config())
        resumed = trained(
            llama_folder, SAVES, resume=folder, peft_config=lora_config(target_modules=["v_proj", "q_proj"])
        )
        assert resumed.state.global_step == 3


class TestNoCheckpoint:
    def test_a_run_s_folder(self, checkpoint_of, refused):
        folder = str(Path(checkpoint_of()).parent)
        assert_fits(refused(folder), f"{folder} ... no trainer_state.json. Did you mean {folder}/checkpoint-2?")

    def test_a_model_s_folder(self, refused, llama_folder):
        assert_fits(
            refused(llama_folder),
            f"{llama_folder} ... trainer_state.json. ... " + FROM_THE_WEIGHTS.format(llama_folder),
        )

    def test_one_that_does_not_exist(self, checkpoint_of, refused, tmp_path):
        run = Path(checkpoint_of({"save_steps": 1, "max_steps": 10})).parent
        assert_fits(
            refused(f"{run}/checkpoint-20"),
            f"There is no checkpoint {run}/checkpoint-20. {run} ... "
            + ", ".join(f"checkpoint-{step}" for step in range(1, 11))
            + ".",
        )
        assert_fits(
            refused(f"{tmp_path}/no/checkpoint-2"),
            f"There is no checkpoint {tmp_path}/no/checkpoint-2. {tmp_path}/no ... no checkpoint.",
        )

    def test_the_last_of_none(self, refused, tmp_path):
        assert_fits(
            refused(True), f"`resume_from_checkpoint=True` ... {tmp_path}/other ... no checkpoint. Leave it out ..."
        )


class TestOtherObjective:
    @pytest.mark.parametrize(
        ("options", "found"),
        [
            ({"beta": 0.5}, "`beta` is 0.1 there and 0.5 here"),
            ({"loss_type": "hinge"}, "`loss_type` is ['sigmoid'] there and ['hinge'] here"),
            ({"ld_alpha": 0.5}, "`ld_alpha` is None there and 0.5 here"),
            (
                {"max_length": 40, "max_prompt_length": 20},
                "`max_length` is 512 there and 40 here; `max_prompt_length` is 256 there and 20 here",
            ),
        ],
        ids=["beta", "loss", "ld_alpha", "cut"],
    )
    def test_options(self, checkpoint_of, refused, options, found):
        folder = checkpoint_of()
        assert_fits(
            refused(folder, options),
            f"The checkpoint {folder} ... another objective: {found}. ... " + FROM_THE_WEIGHTS.format(folder),
        )

    def test_trainer(self, checkpoint_of, llama_folder, tmp_path):
        folder = checkpoint_of()
        args = trl_dpo_ext.PreferredFTConfig(str(tmp_path / "other"), **TINY)
        trainer = trl_dpo_ext.PreferredFTTrainer(llama_folder, args=args, train_dataset=preference_rows(12))
        with pytest.raises(ValueError, match="`trainer` is 'DPOPaperTrainer' there and 'PreferredFTTrainer' here"):
            trainer.train(resume_from_checkpoint=folder)

    def test_what_an_older_version_did_not_write_is_not_compared(self, checkpoint_of, trained, llama_folder, caplog):
        folder = checkpoint_of()
        forget(folder, "objective", "schedule", "beta", "trainer")
        resumed = trained(llama_folder, SAVES | {"beta": 0.5, "loss_type": "hinge"}, resume=folder)
        assert resumed.state.global_step == 3
        assert "with other options" not in caplog.text


class TestOtherSchedule:
    def test_which_values_hold(self, checkpoint_of, trained, llama_folder, caplog, capsys):
        folder = checkpoint_of()
        caplog.clear()
        capsys.readouterr()
        options = {"max_steps": 5, "learning_rate": 1e-4, "lr_scheduler_type": "constant", "warmup_steps": 0}
        resumed = trained(llama_folder, SAVES | options | {"global_batch_size": 8}, resume=folder)
        warnings = [record.getMessage() for record in caplog.records if "other options" in record.getMessage()]
        (message,) = warnings
        assert_fits(
            message,
            f"The checkpoint {folder} ... other options: "
            "`learning_rate` is 0.001 there and 0.0001 here (the checkpoint's ...); "
            "`lr_scheduler_type` is 'constant_with_warmup' there and 'constant' here (this run's ...); "
            "`warmup_steps` is 2 there and 0 here (this run's ...); "
            "`max_steps` is 2 there and 5 here (this run's ...); "
            "`global_batch_size` is 4 there and 8 here (this run's ...). ... " + FROM_THE_WEIGHTS.format(folder),
        )
        assert "5 updates, resumed after 2; rmsprop at 0.001, constant," in capsys.readouterr().out
        # A constant rate, of the checkpoint; this run's would be a tenth
        assert [entry["learning_rate"] for entry in updates(resumed)[2:]] == [1e-3] * 3

    def test_the_schedule_is_this_run_s(self, checkpoint_of, trained, llama_folder):
        folder = checkpoint_of({"lr_scheduler_type": "constant"})
        options = {"max_steps": 5, "lr_scheduler_type": "linear", "warmup_steps": 0, "learning_rate": 1e-4}
        resumed = trained(llama_folder, SAVES | options, resume=folder)
        # The next update's was set before the checkpoint; then 1e-3 (1 - k / 5)
        expected = [1e-3, 1e-3 * 2 / 5, 1e-3 * 1 / 5]
        assert [entry["learning_rate"] for entry in updates(resumed)[2:]] == pytest.approx(expected)

    def test_the_rate_that_held_is_what_the_next_checkpoint_records(self, checkpoint_of, trained, llama_folder):
        resumed = trained(llama_folder, SAVES | {"max_steps": 4, "learning_rate": 1e-4}, resume=checkpoint_of())
        state = json.loads(Path(resumed.args.output_dir, "checkpoint-4", "trl_dpo_ext.json").read_text())
        assert state["schedule"] == {
            "learning_rate": 1e-3,
            "optim": "rmsprop",
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 2,
            "max_steps": 4,
            "num_train_epochs": 1.0,
            "global_batch_size": 4,
        }

    def test_another_optimizer(self, checkpoint_of, refused):
        folder = checkpoint_of()
        assert_fits(
            refused(folder, {"optim": "adamw_torch"}),
            f"The checkpoint {folder} ... `optim` is 'rmsprop' there and 'adamw_torch' here. ... `optim: rmsprop` ... "
            + FROM_THE_WEIGHTS.format(folder),
        )

    def test_without_the_state_of_the_optimizer_this_run_s_holds(self, checkpoint_of, trained, llama_folder, caplog):
        folder = checkpoint_of({"save_only_model": True})
        resumed = trained(
            llama_folder,
            SAVES | {"max_steps": 4, "optim": "adamw_torch", "learning_rate": 1e-4, "warmup_steps": 1},
            resume=folder,
        )
        assert "with other options" not in caplog.text
        # It begins anew: (k + 1) / 2 of the peak
        assert [entry["learning_rate"] for entry in updates(resumed)[2:]] == pytest.approx([5e-5, 1e-4])


class TestOlderCheckpoints:
    @pytest.fixture
    def said(self, trained, llama_folder, caplog):
        def of(options=None, resume=None):
            caplog.clear()
            trainer = trained(llama_folder, SAVES | (options or {}), resume=resume)
            return trainer, [record.getMessage() for record in caplog.records if "earlier" in record.getMessage()]

        return of

    def test_a_new_run_among_them(self, said):
        trainer, first = said()
        assert first == []
        (message,) = said()[1]
        assert_fits(
            message,
            f"{trainer.args.output_dir} ... checkpoint-3 of an earlier run ... `resume_from_checkpoint=True` ... "
            "`resume_from_checkpoint` ... another `output_dir`.",
        )
        assert said({"save_strategy": "no"})[1] == []
        assert said(resume=f"{trainer.args.output_dir}/checkpoint-2")[1] == []


def test_a_warning_of_the_start_names_no_rank(llama_folder, tmp_path, caplog):
    args = DPOPaperConfig(str(tmp_path), **TINY | {"max_steps": 3, "lr_scheduler_type": "cosine", "warmup_steps": 4})
    DPOPaperTrainer(llama_folder, args=args, train_dataset=preference_rows(12)).train()
    (said,) = [record.getMessage() for record in caplog.records if "warm-up" in record.getMessage()]
    # Update k of a schedule of transformers runs at k/W: 2/4 at the last
    assert said.startswith("3 updates are fewer than twice the 4 of warm-up; the highest runs at 0.0005 of 0.001.")
