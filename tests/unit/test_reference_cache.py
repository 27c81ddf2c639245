"""Cached reference log-probabilities: what the key depends on, when a file is taken up again, and when it is not."""

from pathlib import Path

import pytest
import torch
from closeness import EXACT, same
from datasets import Dataset
from integration.conftest import TINY
from peft import get_peft_model
from tiny import lora_config, preference_rows, tiny_gpt2, tiny_llama, tiny_tokenizer

from trl_dpo_ext import DPOPaperConfig, DPOPaperTrainer
from trl_dpo_ext.reference import cache
from trl_dpo_ext.reference.cache import CacheKey, RefLogpsFile, hash_token_ids, sample_rows
from trl_dpo_ext.reference.weights_hash import hash_weights


ROWS = 9
COLUMNS = ["ref_chosen_logps", "ref_rejected_logps"]


def scaled(factor: float, model=None):
    """A model whose weights are not those of the others."""
    model = model or tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(factor)
    return model


def write(path: Path, logps: torch.Tensor) -> None:
    """Replaces the rows of a cached file; its checksum fits."""
    cache.save_file({"ref_logps": logps}, path, metadata={"checksum": cache._checksum(logps)})


class TestKey:
    KEY = CacheKey("reference", "tokens", "float32", 0.5)

    def test_it_is_always_the_same(self):
        # Across processes too: hashes of text would change with PYTHONHASHSEED
        assert str(self.KEY) == str(CacheKey("reference", "tokens", "float32", 0.5))
        assert len(str(self.KEY)) == 32 and int(str(self.KEY), 16) > 0

    @pytest.mark.parametrize(
        "other",
        [
            CacheKey("reference2", "tokens", "float32", 0.5),
            CacheKey("reference", "tokens2", "float32", 0.5),
            CacheKey("reference", "tokens", "bfloat16", 0.5),
            CacheKey("reference", "tokens", "float32", 0.6),
            CacheKey("reference", "tokens", "float32"),
            CacheKey("tokens", "reference", "float32", 0.5),
        ],
        ids=str,
    )
    def test_every_part_counts(self, other):
        assert str(other) != str(self.KEY)

    @pytest.mark.parametrize(
        "other",
        [
            [([1, 2], [3], [5])],  # a token less
            [([1], [2, 3, 4], [5])],  # a border moved
            [([1, 2], [3, 4], [6])],
            [([1, 2], [5], [3, 4])],  # answers swapped
            [([1, 2], [3, 4], [5])] * 2,
        ],
    )
    def test_tokens(self, other):
        def dataset(rows):
            return Dataset.from_list([dict(zip(cache.TOKENIZED_COLUMNS, row, strict=True)) for row in rows])

        one = dataset([([1, 2], [3, 4], [5])])
        assert hash_token_ids(one) == hash_token_ids(dataset([([1, 2], [3, 4], [5])]).add_column("source", ["me"]))
        assert hash_token_ids(one) != hash_token_ids(dataset(other))

    def test_the_order_of_rows_counts(self):
        rows = Dataset.from_list([{name: [i, i] for name in cache.TOKENIZED_COLUMNS} for i in range(3)])
        assert hash_token_ids(rows) != hash_token_ids(rows.select([1, 0, 2]))
        assert hash_token_ids(rows) == hash_token_ids(rows.select([1, 0, 2]).select([1, 0, 2]))


class TestWeights:
    def test_the_same_weights_have_one_hash(self):
        assert hash_weights(tiny_llama()) == hash_weights(tiny_llama())

    @pytest.mark.parametrize(
        "other",
        [lambda: tiny_llama(seed=1), lambda: scaled(1.0 + 1e-6), lambda: tiny_llama().bfloat16(), lambda: tiny_gpt2()],
        ids=["seed", "a bit", "dtype", "architecture"],
    )
    def test_others_have_another(self, other):
        assert hash_weights(other()) != hash_weights(tiny_llama())

    @pytest.mark.parametrize(
        "config",
        [
            lora_config(),
            lora_config(r=8, init_lora_weights=False),
            lora_config(use_dora=True),
            lora_config(modules_to_save=["lm_head"]),
        ],
        ids=["fresh", "trained", "dora", "saved modules"],
    )
    def test_a_model_under_an_adapter_has_the_hash_of_its_base(self, config):
        assert hash_weights(get_peft_model(tiny_llama(), config)) == hash_weights(tiny_llama())

    @pytest.mark.parametrize("name", ["default", "mine", "model", "mlp"])
    def test_whatever_the_adapter_s_name(self, name):
        base, other = (
            get_peft_model(model, lora_config(), adapter_name=name) for model in (tiny_llama(), tiny_llama(seed=1))
        )
        assert hash_weights(base) == hash_weights(tiny_llama())
        assert hash_weights(other) != hash_weights(base)

    def test_the_reference_s_own_adapter_counts(self):
        def model(seed):
            model = get_peft_model(tiny_llama(), lora_config())
            torch.manual_seed(seed)
            model.add_adapter("ref", lora_config(init_lora_weights=False))
            return model

        assert hash_weights(model(0)) == hash_weights(model(0))
        assert len({hash_weights(model(0)), hash_weights(model(1)), hash_weights(tiny_llama())}) == 3

    def test_of_a_reference_that_is_itself_an_adapter_all_weights_count(self):
        def model(seed):
            torch.manual_seed(seed)
            return get_peft_model(tiny_llama(), lora_config(init_lora_weights=False))

        hashes = [hash_weights(each, with_adapters=True) for each in (model(0), model(0), model(1), tiny_llama())]
        assert hashes[0] == hashes[1]
        assert len(set(hashes)) == 3

    def test_training_the_adapter_changes_nothing(self):
        model = get_peft_model(tiny_llama(), lora_config())
        before = hash_weights(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(1.0)
        assert hash_weights(model) == before


@pytest.mark.parametrize(
    ("rows", "samples", "expected"),
    [(1, 4, [0]), (2, 4, [0, 1]), (4, 4, [0, 1, 2, 3]), (10, 4, [0, 3, 6, 9]), (10, 1, [0]), (1000, 3, [0, 500, 999])],
)
def test_sampled_rows_spread_from_the_first_to_the_last(rows, samples, expected):
    assert sample_rows(rows, samples) == expected


class TestFile:
    KEY = CacheKey("reference", "tokens", "float32")

    @pytest.fixture
    def file(self, tmp_path):
        return RefLogpsFile(tmp_path / "new" / "folder", self.KEY)

    def test_nothing_is_there_at_first(self, file):
        assert file.read() is None
        assert not file.path.parent.exists()

    def test_round_trip(self, file):
        pieces = [torch.randn(3, 2), torch.randn(2, 2)]
        file.write(pieces)
        assert torch.equal(file.read(), torch.cat(pieces))
        assert str(self.KEY) in file.path.name
        assert list(file.path.parent.iterdir()) == [file.path]  # no leftovers

    @pytest.mark.parametrize("content", [b"", b"garbage", "half"])
    def test_an_unreadable_file_counts_as_none(self, file, content):
        file.write([torch.randn(50, 2)])
        whole = file.path.read_bytes()
        file.path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
        assert file.read() is None

    @pytest.mark.parametrize("row", [0, 1, 4, 8])
    def test_a_flipped_bit_is_found_in_every_row(self, file, row, caplog):
        logps = torch.arange(18.0).reshape(9, 2) + 1
        file.write([logps])
        content = bytearray(file.path.read_bytes())
        content[len(content) - 8 * (9 - row)] ^= 1  # the lowest bit of the row's first number
        file.path.write_bytes(content)
        assert file.read() is None and "is damaged" in caplog.text

    def test_a_link_is_not_written_through(self, file, tmp_path):
        (tmp_path / "precious").write_text("mine")
        file.path.parent.mkdir(parents=True)
        file.path.symlink_to(tmp_path / "precious")
        file.write([torch.ones(2, 2)])
        assert (tmp_path / "precious").read_text() == "mine" and torch.equal(file.read(), torch.ones(2, 2))

    @pytest.mark.parametrize("earlier", [0, 3])
    def test_a_killed_write_leaves_what_was_there(self, file, monkeypatch, earlier):
        if earlier:
            file.write([torch.ones(earlier, 2)])

        def killed(tensors, path, metadata):
            Path(path).write_bytes(b"half a fi")
            raise KeyboardInterrupt

        monkeypatch.setattr(cache, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            file.write([torch.zeros(9, 2)])
        monkeypatch.undo()
        known = file.read()
        assert (known is None) if not earlier else torch.equal(known, torch.ones(3, 2))
        file.write([torch.zeros(9, 2)])
        assert torch.equal(file.read(), torch.zeros(9, 2))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def cached(tmp_path, folder, monkeypatch):
    """Builds a trainer with a cache in `folder`; returns it and the rows that its reference scored."""
    scored: list[int] = []
    original = DPOPaperTrainer.compute_ref_log_probs

    def recorded(self, model, inputs):
        scored.append(len(inputs["input_ids"]) // 2)
        return original(self, model, inputs)

    monkeypatch.setattr(DPOPaperTrainer, "compute_ref_log_probs", recorded)

    def build(model=None, rows=None, options=None, **kwargs) -> tuple[DPOPaperTrainer, int]:
        scored.clear()
        cache_options = {"precompute_ref_log_probs": True, "ref_logps_cache_dir": str(folder), "max_steps": 1}
        trainer = DPOPaperTrainer(
            tiny_llama() if model is None else model,
            args=DPOPaperConfig(**{"output_dir": str(tmp_path / "out")} | TINY | cache_options | (options or {})),
            train_dataset=preference_rows(ROWS) if rows is None else rows,
            processing_class=tiny_tokenizer(),
            **kwargs,
        )
        return trainer, sum(scored)

    return build


# A whole cache costs four rows of checking
REUSED = 4


class TestWhatTheKeyDependsOn:
    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"options": {"beta": 0.5}},
            {"options": {"learning_rate": 1e-5, "num_train_epochs": 3, "warmup_steps": 0, "seed": 5}},
            {"options": {"per_device_train_batch_size": 2, "precompute_ref_batch_size": 3}},
            {"options": {"loss_type": "ipo"}},
            {"options": {"gradient_checkpointing": True}},
            {"options": {"max_length": 500}},  # it cuts nothing
            {"peft_config": lora_config()},
            {"peft_config": lora_config(r=2)},
        ],
        # The text of a config shows its sets in another order in every process
        ids=lambda change: f"rank={change['peft_config'].r}" if "peft_config" in change else str(change),
    )
    def test_not_on_this(self, cached, folder, tmp_path, change):
        first, computed = cached()
        assert computed == ROWS
        options = change.get("options", {}) | {"output_dir": str(tmp_path / "another")}
        second, computed = cached(**change | {"options": options})
        assert computed == REUSED
        assert len(list(folder.iterdir())) == 1
        for column in COLUMNS:
            assert second.train_dataset[column][:] == first.train_dataset[column][:]

    def test_not_on_where_the_model_comes_from(self, cached, folder, llama_folder):
        cached(llama_folder)
        assert cached()[1] == REUSED
        assert cached(model=tiny_llama(seed=1), ref_model=tiny_llama())[1] == REUSED  # an explicit reference
        assert len(list(folder.iterdir())) == 1

    def test_not_on_the_policy_s_dtype_beside_an_explicit_reference(self, cached):
        cached(ref_model=tiny_llama(seed=1))
        assert cached(model=tiny_llama().bfloat16(), ref_model=tiny_llama(seed=1))[1] == REUSED

    @pytest.mark.parametrize(
        "change",
        [
            lambda: {"model": tiny_llama(seed=1)},
            lambda: {"model": scaled(1.001)},
            lambda: {"rows": preference_rows(ROWS, start=1)},
            lambda: {"options": {"max_length": 50}},
            lambda: {"options": {"tokenization": "joint"}},
            lambda: {"options": {"bf16": True}},
            lambda: {"model": tiny_llama().bfloat16()},
            lambda: {"options": {"ld_alpha": 0.5}},
            lambda: {"ref_model": tiny_llama(seed=1)},
        ],
        ids=["seed", "weights", "rows", "cut", "tokens", "autocast", "dtype", "ld_alpha", "ref_model"],
    )
    def test_on_this(self, cached, folder, change, caplog):
        first, _ = cached()
        second, computed = cached(**change())
        assert computed == ROWS
        assert len(list(folder.iterdir())) == 2
        assert second.train_dataset[COLUMNS[0]][:] != first.train_dataset[COLUMNS[0]][:]
        assert "recomputed" not in caplog.text  # another file, not a stale one

    def test_on_the_prompt_s_end_that_is_kept(self, cached):
        cached(options={"max_length": 50})
        assert cached(options={"max_length": 50, "prompt_truncation_mode": "keep_start"})[1] == ROWS

    def test_on_a_trained_adapter(self, cached, folder):
        def trained(seed):
            torch.manual_seed(seed)
            return get_peft_model(tiny_llama(), lora_config(init_lora_weights=False))

        cached()
        assert cached(trained(0))[1] == ROWS
        assert cached(trained(0))[1] == REUSED
        assert cached(trained(1))[1] == ROWS
        assert len(list(folder.iterdir())) == 3


class TestTrainersWithACache:
    def test_a_sweep_over_beta_computes_the_reference_once(self, cached, tmp_path):
        computed = []
        for beta in (0.05, 0.1, 0.5):
            trainer, rows = cached(options={"beta": beta, "output_dir": str(tmp_path / f"beta-{beta}")})
            trainer.train()
            computed.append(rows)
        assert computed == [ROWS, REUSED, REUSED]

    @pytest.mark.usefixtures("float64")
    def test_values_are_the_reference_s(self, cached):
        trainer, _ = cached(model=tiny_llama(seed=1), ref_model=tiny_llama(seed=2))
        live = DPOPaperTrainer(
            tiny_llama(seed=2),
            args=DPOPaperConfig(trainer.args.output_dir, **TINY | {"reference_free": True, "beta": 1.0}),
            train_dataset=preference_rows(2),
            processing_class=tiny_tokenizer(),
        )
        expected = live.predict(preference_rows(ROWS)).predictions  # beta log pi
        found = torch.tensor([trainer.train_dataset[column][:] for column in COLUMNS]).T
        torch.testing.assert_close(found, torch.tensor(expected), rtol=EXACT, atol=EXACT)

    @pytest.mark.usefixtures("float64")
    def test_a_partial_file_is_taken_up(self, cached, folder):
        whole, _ = cached()
        (path,) = folder.iterdir()
        known = torch.tensor([whole.train_dataset[column][:5] for column in COLUMNS]).T.contiguous()
        write(path, known)
        again, computed = cached()
        assert computed == REUSED + ROWS - 5
        for column in COLUMNS:
            assert again.train_dataset[column][:] == same(whole.train_dataset[column][:])

    def test_another_config_of_the_same_weights_is_not_served(self, cached, caplog):
        # The key cannot see a position encoding, but the rows that are computed again do
        other = tiny_llama()
        other.model.rotary_emb.inv_freq.mul_(3.0)
        other.model.rotary_emb.original_inv_freq.mul_(3.0)
        first, _ = cached()
        second, computed = cached(other)
        assert computed == REUSED + ROWS
        assert "reference policy. They are recomputed" in caplog.text
        assert second.train_dataset[COLUMNS[0]][:] != first.train_dataset[COLUMNS[0]][:]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_rounding_between_batch_shapes_is_not_stale(self, cached, dtype, caplog):
        # An explicit reference may have another dtype than the policy
        assert cached(ref_model=tiny_llama(seed=1).to(dtype))[1] == ROWS
        again = {"precompute_ref_batch_size": 1}
        assert cached(ref_model=tiny_llama(seed=1).to(dtype), options=again)[1] == REUSED
        assert "recomputed" not in caplog.text

    def test_every_set_has_its_file(self, cached, folder):
        sets = {"a": preference_rows(3, start=20), "b": preference_rows(5, start=30)}
        assert cached(eval_dataset=sets)[1] == ROWS + 3 + 5
        assert len(list(folder.iterdir())) == 3
        assert cached(eval_dataset=sets)[1] == REUSED + 3 + REUSED
        # A set that was seen before, whatever it is for
        assert cached(rows=sets["b"])[1] == REUSED

    def test_a_wrong_cache_is_found_before_the_first_update(self, cached, folder):
        # Only rows 0, 3, 5 and 8 of 9 are computed again, so row 1 gets through
        whole, _ = cached()
        (path,) = folder.iterdir()
        logps = torch.tensor([whole.train_dataset[column][:] for column in COLUMNS]).T.contiguous()
        logps[1] += 50.0
        assert 1 not in sample_rows(ROWS)
        write(path, logps)
        trainer, computed = cached()
        assert computed == REUSED
        with pytest.raises(ValueError, match="should be 0, found up to 5.*reference cache"):
            trainer.train()

    def test_default_folder(self, monkeypatch, tmp_path):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
        assert DPOPaperConfig("out", use_cpu=True, report_to="none").default_cache_dir() == tmp_path / "trl_dpo_ext"
