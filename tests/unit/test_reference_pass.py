"""The pass that computes cached reference log-probabilities."""

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from trl_dpo_ext.reference import cached_pass
from trl_dpo_ext.reference.cache import CacheKey, RefLogpsFile, sample_rows
from trl_dpo_ext.reference.cached_pass import reference_pass


def exact(rows: torch.Tensor) -> torch.Tensor:
    """A stand-in for the reference: row i scores (-i, -10 i)."""
    return -rows[:, None] * torch.tensor([1.0, 10.0])


class TestPass:
    EXPECTED = exact(torch.arange(10.0))

    @pytest.fixture
    def file(self, tmp_path):
        return RefLogpsFile(tmp_path, CacheKey("reference", "tokens", "float32"))

    @pytest.fixture
    def computed(self):
        return []

    @pytest.fixture
    def run(self, file, computed):
        def run(logps_of=exact):
            def recorded(batch):
                computed.append(batch["row"].tolist())
                return logps_of(batch["row"].float())

            return reference_pass(
                Dataset.from_dict({"row": list(range(10))}),
                logps_of=recorded,
                collate=lambda rows: {"row": torch.tensor([row["row"] for row in rows])},
                to_device=lambda batch: batch,
                tolerance_of=lambda logps: torch.tensor(1e-3),
                accelerator=Accelerator(cpu=True),
                batch_size=4,
                file=file,
                name="train",
            )

        return run

    def test_every_row_once_and_in_order(self, run, computed, file):
        assert torch.equal(run(), self.EXPECTED)
        assert computed == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert torch.equal(file.read(), self.EXPECTED)

    def test_a_whole_file_costs_four_rows(self, run, computed, file, caplog):
        file.write([self.EXPECTED])
        assert torch.equal(run(), self.EXPECTED)
        assert computed == [[0, 3, 6, 9]]
        assert caplog.text == ""

    @pytest.mark.parametrize("done", [1, 3, 8])
    def test_a_partial_file_is_taken_up_where_it_stopped(self, run, computed, file, done):
        file.write([self.EXPECTED[:done]])
        assert torch.equal(run(), self.EXPECTED)
        sample, *rest = computed
        assert sample == sample_rows(done)
        assert [row for batch in rest for row in batch] == list(range(done, 10))
        assert torch.equal(file.read(), self.EXPECTED)

    def test_an_interrupted_pass_goes_on(self, run, computed, file, monkeypatch):
        monkeypatch.setattr(cached_pass, "_SECONDS_BETWEEN_WRITES", -1)

        def interrupted(rows):
            if 8 in rows:
                raise KeyboardInterrupt
            return exact(rows)

        with pytest.raises(KeyboardInterrupt):
            run(interrupted)
        assert torch.equal(file.read(), self.EXPECTED[:8])
        computed.clear()
        assert torch.equal(run(), self.EXPECTED)
        assert computed == [sample_rows(8), [8, 9]]

    def test_a_stale_file_is_computed_again_with_a_warning(self, run, computed, file, caplog):
        file.write([self.EXPECTED + 0.5])
        assert torch.equal(run(), self.EXPECTED)
        assert [len(batch) for batch in computed] == [4, 4, 4, 2]
        assert torch.equal(file.read(), self.EXPECTED)
        assert f"train dataset in {file.path} differ by 0.5 nats" in caplog.text
        assert "recomputed" in caplog.text

    def test_a_difference_within_rounding_is_none(self, run, computed, file, caplog):
        file.write([self.EXPECTED + 5e-4])
        assert torch.equal(run(), self.EXPECTED + 5e-4)
        assert len(computed) == 1 and caplog.text == ""

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_file_that_is_not_finite_is_stale(self, run, file, value, caplog):
        file.write([torch.full((10, 2), value)])
        assert torch.equal(run(), self.EXPECTED)
        assert "recomputed" in caplog.text

    def test_an_unreadable_file_is_computed_again_with_a_warning(self, run, computed, file, caplog):
        file.write([self.EXPECTED])
        file.path.write_bytes(file.path.read_bytes()[:-9])
        assert torch.equal(run(), self.EXPECTED)
        assert [len(batch) for batch in computed] == [4, 4, 2]
        assert str(file.path) in caplog.text and "recomputed" in caplog.text
