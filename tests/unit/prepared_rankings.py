"""Rankings as training prepares them."""

from typing import NamedTuple

from datasets import Dataset, IterableDataset
from tiny import EOS_TOKEN, tiny_tokenizer

from trl_dpo_ext.data.dataset_preparation import prepare_dataset
from trl_dpo_ext.data.preparation_report import RankingReport


TOKENIZER = tiny_tokenizer()
IDS = ("prompt_ids", "completion_ids", "ranks")
GOOD = {"prompt": "Is it?", "completions": [" Yes.", " No.", " Not so."]}


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


class Prepared(NamedTuple):
    rows: list[dict]
    report: RankingReport
    dataset: Dataset | IterableDataset

    def texts(self) -> list[list[str]]:
        """Completions of each row, read back from their tokens, the EOS token left out."""
        return [[TOKENIZER.decode(c).removesuffix(EOS_TOKEN) for c in row["completion_ids"]] for row in self.rows]

    def ranks(self) -> list[list[int]]:
        return [row["ranks"] for row in self.rows]

    def lengths(self) -> list[tuple[int, ...]]:
        return [(len(row["prompt_ids"]), *map(len, row["completion_ids"])) for row in self.rows]


def prepare(rows, tokenizer=TOKENIZER, **options) -> Prepared:
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    dataset, report = prepare_dataset(dataset, tokenizer, **options)
    return Prepared([{name: row[name] for name in IDS} for row in dataset], report, dataset)
