"""What a checkpoint gives back: the weights, the reference and the rows of its point; and which one is taken."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from integration.conftest import assert_fits, updates
from safetensors.torch import load_file, save_file
from tiny import MODELS, preference_rows, tiny_llama, tiny_moe, tiny_tokenizer
from transformers import TrainerCallback

from trl_dpo_ext import DPOPaperTrainer
from trl_dpo_ext.trainers.checkpoints.checkpoint_files import checkpoints_of, fault_of, newest_whole
from trl_dpo_ext.trainers.checkpoints.restored_weights import check_restored, is_converted, load_converted


SAVES = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3}
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "max_steps": 3,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
}


def assert_equal_weights(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def reshard(checkpoint: str) -> None:
    """Writes the weights of a checkpoint in several files."""
    whole = Path(checkpoint, "model.safetensors")
    tensors = load_file(whole)
    whole.unlink()
    weight_map = {name: f"model-{i % 3 + 1:05d}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, Path(checkpoint, file))
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    Path(checkpoint, "model.safetensors.index.json").write_text(json.dumps(index))


class TestWeights:
    @pytest.mark.parametrize("sharded", [False, True], ids=["one_file", "sharded"])
    def test_resumed_experts(self, trained, sharded):
        straight = trained(tiny_moe(), SAVES, processing_class=tiny_tokenizer())
        checkpoint = f"{straight.args.output_dir}/checkpoint-2"
        if sharded:
            reshard(checkpoint)
        resumed = trained(tiny_moe(), SAVES, resume=checkpoint, processing_class=tiny_tokenizer())
        assert updates(resumed)[-1]["loss"] == updates(straight)[-1]["loss"]
        assert_equal_weights(resumed.model, straight.model)

    @pytest.mark.parametrize("greater_is_better", [False, True], ids=["last", "first"])
    def test_best_experts(self, trained, greater_is_better):
        options = BEST | {"greater_is_better": greater_is_better}
        trainer = trained(
            tiny_moe(), options, eval_dataset=preference_rows(3, start=30), processing_class=tiny_tokenizer()
        )
        best = trainer.state.best_model_checkpoint
        assert Path(best).name == ("checkpoint-1" if greater_is_better else "checkpoint-3")
        assert_equal_weights(trainer.model, type(trainer.model).from_pretrained(best))

    @pytest.mark.parametrize(
        ("content", "fault"), [(None, "it has no weights"), (b"", "model.safetensors is empty, truncated or damaged")]
    )
    def test_a_best_that_is_broken(self, config, llama_folder, content, fault):
        class Breaks(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 2:
                    best = Path(state.best_model_checkpoint, "model.safetensors")
                    best.unlink() if content is None else best.write_bytes(content)

        trainer = DPOPaperTrainer(
            llama_folder,
            args=config(**BEST, greater_is_better=True),
            train_dataset=preference_rows(12),
            eval_dataset=preference_rows(3, start=30),
            callbacks=[Breaks()],
        )
        best = f"{trainer.args.output_dir}/checkpoint-1"
        with pytest.raises(ValueError) as error:
            trainer.train()
        assert_fits(
            str(error.value),
            f"{best} was the best checkpoint ... {fault}. ... checkpoint of {trainer.args.output_dir}.",
        )

    @pytest.mark.parametrize("name", list(MODELS))
    def test_every_model_is_given_back(self, name, tmp_path):
        MODELS[name](seed=1).save_pretrained(tmp_path)
        model = MODELS[name](seed=2)
        assert is_converted(model) == (name in ("moe", "vlm", "gemma3_vlm"))
        with pytest.raises(ValueError, match="were not restored: "):
            check_restored(model, tmp_path)
        load_converted(model, tmp_path)
        check_restored(model, tmp_path)
        assert_equal_weights(model, MODELS[name](seed=1))

    def test_one_bit(self, tmp_path):
        model = tiny_llama()
        model.save_pretrained(tmp_path)
        check_restored(model, tmp_path)
        with torch.no_grad():
            weight = model.model.layers[1].mlp.up_proj.weight
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
        # 21 tensors, none of them tied
        with pytest.raises(ValueError, match=r"1 of 21 differ .* \(first: model.layers.1.mlp.up_proj.weight\)"):
            check_restored(model, tmp_path)

    def test_a_weight_that_the_checkpoint_lacks(self, tmp_path):
        model = tiny_llama()
        model.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["model.norm.weight"]
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=r"1 of 21 differ .* \(first: model.norm.weight\)"):
            check_restored(model, tmp_path)


class TestReference:
    def test_that_moves_is_in_the_checkpoint(self, trained, llama_folder):
        options = SAVES | {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
        straight = trained(llama_folder, options)
        checkpoint = Path(straight.args.output_dir, "checkpoint-2")
        resumed = trained(llama_folder, options, resume=str(checkpoint))
        assert_equal_weights(resumed.ref_model, straight.ref_model)
        assert_equal_weights(resumed.model, straight.model)
        shutil.rmtree(checkpoint / "reference")
        with pytest.raises(ValueError, match="it has no reference/model.safetensors"):
            trained(llama_folder, options, resume=str(checkpoint))


class TestRows:
    def test_grouped_by_length_within_the_second_epoch(self, trained, llama_folder):
        # 12 rows in updates of 4: update 4 is the first of the second epoch
        options = {"num_train_epochs": 2, "train_sampling_strategy": "group_by_length"}
        options |= {"save_strategy": "steps", "save_steps": 1}
        straight = trained(llama_folder, options)
        for step in (2, 3, 4, 5):
            resumed = trained(llama_folder, options, resume=f"{straight.args.output_dir}/checkpoint-{step}")
            assert updates(resumed)[-1]["logps/chosen"] == updates(straight)[-1]["logps/chosen"]
            assert_equal_weights(resumed.model, straight.model)

    @pytest.mark.parametrize("step", [3, 4], ids=["between_epochs", "within_the_second"])
    def test_grouped_by_length_from_two_processes(self, trained, llama_folder, step):
        """Their files of random state have other names than those of one process."""
        options = {"num_train_epochs": 2, "train_sampling_strategy": "group_by_length"}
        straight = trained(llama_folder, options | {"save_strategy": "steps", "save_steps": 1})
        checkpoint = Path(straight.args.output_dir, f"checkpoint-{step}")
        state = json.loads((checkpoint / "trl_dpo_ext.json").read_text())
        (checkpoint / "trl_dpo_ext.json").write_text(json.dumps(state | {"processes": 2}))
        (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
        resumed = trained(llama_folder, options, resume=str(checkpoint))
        assert_equal_weights(resumed.model, straight.model)

    def test_a_stream_within_its_third_pass(self, trained, llama_folder):
        # 10 rows: two updates of 4 a pass, and two rows left out
        rows = preference_rows(10).to_iterable_dataset().shuffle(seed=1, buffer_size=4)
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
        straight = trained(llama_folder, options, train_dataset=rows)
        for step in (1, 2, 3, 5):
            checkpoint = f"{straight.args.output_dir}/checkpoint-{step}"
            resumed = trained(llama_folder, options, resume=checkpoint, train_dataset=rows)
            assert [entry["epoch"] for entry in updates(resumed)] == [entry["epoch"] for entry in updates(straight)]
            assert_equal_weights(resumed.model, straight.model)


class TestEnds:
    def test_a_finished_run_makes_no_further_update(self, trained, llama_folder):
        # 12 rows in updates of 4, so that update 2 lies within the epoch
        straight = trained(llama_folder, SAVES | {"max_steps": 2})
        resumed = trained(llama_folder, SAVES | {"max_steps": 2}, resume=True)
        assert resumed.state.global_step == 2
        assert_equal_weights(resumed.model, straight.model)
        lines = Path(straight.args.output_dir, "run_log", "metrics.jsonl").read_text().splitlines()
        assert [(json.loads(line)["step"], "train_loss" in line) for line in lines] == [
            (1, False),
            (2, False),
            (2, True),
        ]

    def test_what_follows_the_last_update_of_an_epoch_is_done(self, trained, llama_folder):
        options = {"num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 3}
        kwargs = {"eval_dataset": preference_rows(3, start=30)}
        straight = trained(llama_folder, options, **kwargs)
        resumed = trained(llama_folder, options, resume=f"{straight.args.output_dir}/checkpoint-3", **kwargs)
        steps = [(entry["step"], "eval_loss" in entry) for entry in straight.state.log_history]
        assert [(entry["step"], "eval_loss" in entry) for entry in resumed.state.log_history] == steps
        assert_equal_weights(resumed.model, straight.model)

    def test_a_log_window_goes_on_over_a_resume(self, trained, llama_folder):
        options = SAVES | {"logging_steps": 3}
        straight = trained(llama_folder, options)
        resumed = trained(llama_folder, options, resume=f"{straight.args.output_dir}/checkpoint-2")
        assert updates(resumed) == updates(straight)


class TestWhichIsTaken:
    @pytest.fixture
    def run(self, trained, llama_folder):
        """A run's folder with checkpoints 1 to 3."""
        return Path(trained(llama_folder, SAVES | {"save_steps": 1}).args.output_dir)

    @pytest.mark.parametrize(
        ("file", "content", "fault"),
        [
            ("trainer_state.json", None, "it has no trainer_state.json"),
            ("trainer_state.json", b"", "trainer_state.json is empty, truncated or damaged"),
            ("trainer_state.json", 0.5, "trainer_state.json is empty, truncated or damaged"),
            ("trl_dpo_ext.json", 0.5, "trl_dpo_ext.json is empty, truncated or damaged"),
            ("model.safetensors", None, "it has no weights"),
            ("model.safetensors", 0.9, "model.safetensors is empty, truncated or damaged"),
            ("optimizer.pt", None, "it has no optimizer.pt"),
            ("optimizer.pt", 0.9, "optimizer.pt is empty, truncated or damaged"),
            ("scheduler.pt", b"", "scheduler.pt is empty, truncated or damaged"),
            ("rng_state.pth", None, "it has no rng_state.pth"),
            ("rng_state.pth", 0.5, "rng_state.pth is empty, truncated or damaged"),
            ("log_window_0.pth", None, "it has no log_window_0.pth"),
            ("log_window_0.pth", 0.5, "log_window_0.pth is empty, truncated or damaged"),
            ("epoch_start_0.pth", None, "it has no epoch_start_0.pth"),
            ("epoch_start_0.pth", b"", "epoch_start_0.pth is empty, truncated or damaged"),
            ("trainer_state.json", b"{}", "trainer_state.json is empty, truncated or damaged"),
            ("trl_dpo_ext.json", b'{"processes": "2"}', "trl_dpo_ext.json is empty, truncated or damaged"),
            ("trl_dpo_ext.json", b'{"reference": []}', "trl_dpo_ext.json is empty, truncated or damaged"),
            ("checkpoint-is-incomplete.txt", b"", "its writing was interrupted (checkpoint-is-incomplete.txt)"),
        ],
    )
    def test_the_newest_that_is_whole(self, run, file, content, fault, caplog):
        path = run / "checkpoint-3" / file
        if content is None:
            path.unlink()
        elif isinstance(content, float):
            path.write_bytes(path.read_bytes()[: int(content * path.stat().st_size)])
        else:
            path.write_bytes(content)
        assert fault_of(path.parent) == fault
        assert newest_whole(run) == f"{run}/checkpoint-2"
        assert_fits(
            caplog.records[-1].getMessage(), f"Resuming from {run}/checkpoint-2, ... checkpoint-3 is skipped: {fault}."
        )

    def test_what_a_removal_has_left(self, run):
        checkpoint = run / "checkpoint-3"
        (checkpoint / "trl_dpo_ext.json").unlink()
        assert fault_of(checkpoint) is None  # as TRL writes them
        (checkpoint / "optimizer.pt").unlink()
        assert fault_of(checkpoint) == "it has no optimizer.pt"

    def test_a_removal_begins_with_what_says_that_it_is_whole(self, run, trained, llama_folder, monkeypatch):
        removed = []
        monkeypatch.setattr("shutil.rmtree", lambda folder: removed.append(sorted(Path(folder).glob("trainer_*"))))
        trained(llama_folder, SAVES | {"save_steps": 1}, resume=f"{run}/checkpoint-1")
        assert removed == [[], []]  # checkpoints 2 and 3

    def test_one_that_cannot_be_read(self, run, monkeypatch):
        def fail(path: Path, *args, **kwargs):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "read_text", fail)
        assert fault_of(run / "checkpoint-3") == "trainer_state.json is empty, truncated or damaged"

    def test_a_named_one_that_is_not_whole(self, run, trained, llama_folder):
        (run / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
        with pytest.raises(ValueError) as error:
            trained(llama_folder, SAVES, resume=f"{run}/checkpoint-3")
        assert_fits(
            str(error.value),
            f"{run}/checkpoint-3 ... optimizer.pt is empty, truncated or damaged. Resume from {run}/checkpoint-2, ... "
            "`resume_from_checkpoint=True` ...",
        )

    def test_none_is_whole(self, run):
        for path in checkpoints_of(run):
            (path / "trainer_state.json").write_text("{")
        with pytest.raises(ValueError) as error:
            newest_whole(run)
        fault = "trainer_state.json is empty, truncated or damaged"
        assert_fits(
            str(error.value),
            f"`resume_from_checkpoint=True`, ... {run} ... "
            + "; ".join(f"checkpoint-{step} is skipped: {fault}" for step in (3, 2, 1))
            + ". Leave it out ...",
        )

    def test_a_shard_is_missing(self, run):
        reshard(str(run / "checkpoint-3"))
        assert fault_of(run / "checkpoint-3") is None
        (run / "checkpoint-3" / "model-00002-of-00003.safetensors").unlink()
        assert fault_of(run / "checkpoint-3") == "it has no model-00002-of-00003.safetensors"

    def test_of_two_processes_each_asks_for_its_own_random_state(self, run):
        checkpoint = run / "checkpoint-3"
        state = json.loads((checkpoint / "trl_dpo_ext.json").read_text())
        (checkpoint / "trl_dpo_ext.json").write_text(json.dumps(state | {"processes": 2}))
        (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
        assert [fault_of(checkpoint, process) for process in range(3)] == [None, "it has no rng_state_1.pth", None]

    def test_an_older_one_at_the_same_update_goes_before_it_is_written_anew(self, run, llama_folder, config):
        left = run / "checkpoint-1" / "model-00001-of-00002.safetensors"
        left.write_bytes(b"")
        trainer = DPOPaperTrainer(
            llama_folder, args=config(**SAVES | {"save_steps": 1}), train_dataset=preference_rows(12)
        )
        trainer.train()
        assert not left.exists()


class TestOtherRuns:
    @pytest.fixture
    def said(self, trained, llama_folder, caplog):
        def of(options=None, first=None, **kwargs):
            saved = trained(llama_folder, SAVES | (first or {}))
            caplog.clear()
            checkpoint = f"{saved.args.output_dir}/checkpoint-2"
            trained(llama_folder, SAVES | (first or {}) | (options or {}), resume=checkpoint, **kwargs)
            return [record.getMessage() for record in caplog.records if "The checkpoint " in record.getMessage()]

        return of

    def test_the_same(self, said):
        assert said() == []

    def test_rows(self, said):
        (message,) = said(train_dataset=preference_rows(16))
        assert "`rows` is '12 (hash " in message and " there and '16 (hash " in message

    @pytest.mark.parametrize(
        ("options", "found"),
        [
            ({"seed": 7}, "`seed` is 42 there and 7 here (this run's "),
            ({"bf16": True}, "`mixed_precision` is 'no' there and 'bf16' here (this run's "),
            ({"max_grad_norm": 1.0}, "`max_grad_norm` is 10.0 there and 1.0 here (this run's "),
            ({"weight_decay": 0.1}, "`weight_decay` is 0.0 there and 0.1 here (the checkpoint's "),
            (
                {"train_sampling_strategy": "random"},
                "`train_sampling_strategy` is 'sequential' there and 'random' here (this run's ",
            ),
        ],
    )
    def test_options(self, said, options, found):
        (message,) = said(options)
        assert found in message

    def test_processes(self, trained, llama_folder, caplog):
        saved = trained(llama_folder, SAVES)
        checkpoint = Path(saved.args.output_dir, "checkpoint-2")
        state = json.loads((checkpoint / "trl_dpo_ext.json").read_text())
        (checkpoint / "trl_dpo_ext.json").write_text(json.dumps(state | {"processes": 2}))
        (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
        trained(llama_folder, SAVES, resume=str(checkpoint))
        (message,) = [line for line in caplog.messages if "a run with other options" in line]
        assert "`processes` is 2 there and 1 here (this run's " in message

    def test_no_state_of_the_optimizer(self, said):
        (message,) = said(first={"save_only_model": True})
        assert "no state of the optimizer (`save_only_model`)" in message
