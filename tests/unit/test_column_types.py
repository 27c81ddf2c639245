"""Types of columns: whatever Arrow type text, messages and ids have, tokens are the same, and no value is changed."""

from functools import partialmethod

import datasets
import pyarrow as pa
import pytest
from broken_rows import KINDS
from datasets import Dataset, DatasetDict, IterableDataset
from tiny import preference_rows, tiny_tokenizer

import trl_dpo_ext.data.dataset_preparation
from trl_dpo_ext.data.conversion.from_pairs import pairs_to_rankings
from trl_dpo_ext.data.conversion.to_pairs import all_pairs
from trl_dpo_ext.data.dataset_preparation import prepare_dataset


TOKENIZER = tiny_tokenizer()
IDS = ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "ranks")
PAIR, RANKING = KINDS["text"], KINDS["ranking"]

PREPARATIONS = {
    "pairs": lambda rows: prepare_dataset(rows, TOKENIZER, as_pairs=True),
    "rankings": lambda rows: prepare_dataset(rows, TOKENIZER),
    "best": lambda rows: prepare_dataset(rows, TOKENIZER, alone=True),
}


def prepared(rows: Dataset, way: str) -> list[dict]:
    dataset, _ = PREPARATIONS[way](rows)
    made = IDS[:3] if way == "pairs" else (IDS[0], *IDS[3:])
    return [{name: row[name] for name in made} for row in dataset]


def with_call(arguments: object) -> list[dict]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [{"role": "assistant", "content": "", "tool_calls": [call]}]


def arguments_of(completion: list[dict]) -> object:
    return completion[0]["tool_calls"][0]["function"]["arguments"]


# Arguments of tools of several names and types, which `datasets` keeps as JSON
ARGUMENTS = ({"city": "Paris"}, {"lang": ["fr"]}, {"city": 5}, "none")
TEXT = [{"role": "assistant", "content": "No."}]
CALLS = [
    {"prompt": [{"role": "user", "content": f"{number}?"}], "chosen": TEXT, "rejected": with_call(arguments)}
    for number, arguments in enumerate(ARGUMENTS)
]


def in_type(kind: pa.DataType, name: str) -> pa.DataType:
    """An Arrow type with all its texts, or all its lists, of another kind."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, in_type(field.type, name)) for field in kind])
    if pa.types.is_list(kind):
        inner = in_type(kind.value_type, name)
        return pa.large_list(inner) if name == "large_list" else pa.list_(inner)
    if pa.types.is_string(kind) and name == "dictionary":
        return pa.dictionary(pa.int32(), kind)
    return getattr(pa, name)() if pa.types.is_string(kind) and name != "large_list" else kind


@pytest.mark.parametrize("name", ["large_string", "string_view", "dictionary", "large_list"])
@pytest.mark.parametrize("kind", ["text", "chat", "tools", "ids", "ranking", "chat ranking", "ranking ids"])
def test_arrow_types_of_text_and_lists(kind, name):
    plain = pa.Table.from_pylist([KINDS[kind]] * 2)
    columns = {
        column.name: pa.array([KINDS[kind][column.name]] * 2, in_type(column.type, name)) for column in plain.schema
    }
    for way in ("rankings", "best") if "ranking" in kind else PREPARATIONS:
        assert prepared(Dataset(pa.table(columns)), way) == prepared(Dataset(plain), way)


def test_lists_of_a_fixed_size():
    row = RANKING | {"completions": [" Yes.", "", " No."]}  # one is left out
    fixed = pa.table(
        {
            name: pa.array([row[name]] * 2, pa.list_(of, 3))
            for name, of in (("completions", pa.string()), ("ranks", pa.int8()))
        }
        | {"prompt": pa.array([row["prompt"]] * 2)}
    )
    assert prepared(Dataset(fixed), "rankings") == prepared(Dataset.from_list([row] * 2), "rankings")


@pytest.mark.parametrize("row", [PAIR, RANKING], ids=["pair", "ranking"])
@pytest.mark.parametrize(
    "unread",
    [{"prompt_ids": [1.5]}, {"chosen_ids": [0.5]}, {"rejected_ids": [True]}, {"ranks": [0.5]}, {"scores": [1.0, 2.0]}],
    ids=lambda unread: next(iter(unread)),
)
def test_a_column_that_is_not_read_gives_no_type(row, unread):
    if row is RANKING and "prompt_ids" not in unread:
        return  # read, or refused
    for way in PREPARATIONS if row is PAIR else ("rankings", "best"):
        found = prepared(Dataset.from_list([row | unread] * 2), way)
        assert found == prepared(Dataset.from_list([row] * 2), way)
        assert {type(number) for number in found[0]["prompt_ids"]} == {int}


class TestToolCalls:
    @pytest.fixture(autouse=True)
    def _written_row_by_row(self, monkeypatch):
        # `datasets` takes types from the rows that it writes first, by default a thousand
        monkeypatch.setattr(Dataset, "map", partialmethod(Dataset.map, writer_batch_size=1))

    @pytest.mark.parametrize("swap", [False, True])
    def test_pairs_rankings_and_best_have_the_same_tokens(self, swap):
        names = {"chosen": "rejected", "rejected": "chosen"} if swap else {}
        rows = [{names.get(name, name): value for name, value in row.items()} for row in CALLS]
        dataset = Dataset.from_list(rows, on_mixed_types="use_json")
        pairs, rankings, best = (prepared(dataset, way) for way in PREPARATIONS)
        assert [row["completion_ids"] for row in rankings] == [
            [row["chosen_ids"], row["rejected_ids"]] for row in pairs
        ]
        assert [row["completion_ids"] for row in best] == [[row["chosen_ids"]] for row in pairs]

    def test_conversions_keep_them(self):
        rankings, _ = pairs_to_rankings(Dataset.from_list(CALLS, on_mixed_types="use_json"))
        assert [arguments_of(row["completions"][1]) for row in rankings] == list(ARGUMENTS)
        assert [row["completions"][0] for row in rankings] == [TEXT] * 4
        rows = [{"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]]} for row in CALLS]
        pairs = all_pairs(Dataset.from_list(rows, on_mixed_types="use_json"))
        assert [arguments_of(row["rejected"]) for row in pairs] == list(ARGUMENTS)


@pytest.mark.parametrize("way", PREPARATIONS)
def test_what_is_no_data_set_or_has_no_row(way):
    empty = Dataset.from_list([PAIR]).select([])
    for rows in (empty, Dataset.from_dict({}), IterableDataset.from_generator(lambda: iter([]))):
        with pytest.raises(ValueError, match=r"^The train dataset has no rows\.$"):
            PREPARATIONS[way](rows)
    with pytest.raises(TypeError, match="The train dataset is a `DatasetDict`; .* Pass one of its splits."):
        PREPARATIONS[way](DatasetDict(train=preference_rows(2)))
    with pytest.raises(TypeError, match="The train dataset is a `list`; expected a `Dataset`"):
        PREPARATIONS[way]([PAIR])


def test_another_version_takes_nothing_from_the_cache(monkeypatch):
    monkeypatch.setattr(datasets.arrow_dataset, "update_fingerprint", datasets.fingerprint.update_fingerprint)
    rows = preference_rows(2)
    fingerprints = []
    for version in ("1.0", "1.0", "1.1"):
        monkeypatch.setattr(trl_dpo_ext.data.dataset_preparation, "__version__", version)
        fingerprints.append(PREPARATIONS["pairs"](rows)[0]._fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
