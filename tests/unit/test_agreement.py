"""Agreement of raters: values by hand, kappas of statsmodels, coverage of the intervals, and rows that are wrong."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from closeness import same
from statsmodels.stats.inter_rater import aggregate_raters, cohens_kappa, fleiss_kappa

from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation.judging import agreement
from trl_dpo_ext.evaluation.judging.agreement import agreement_table
from trl_dpo_ext.evaluation.judging.judgements import Judgement


# Three people, of whom one is missing twice, and a judge
ROWS = {
    "ann": {"1": "a", "2": "a", "3": "tie", "4": "b", "5": "a"},
    "bob": {"1": "a", "2": "b", "3": "tie", "4": "b", "5": "tie"},
    "eve": {"1": "a", "2": "b", "4": "a"},
    "gpt": {"1": "a", "2": "b", "3": "a", "4": "tie", "5": "unparsable"},
}


def judgements(rows: dict[str, dict[str, str]]) -> list[Judgement]:
    return [
        Judgement(item, rater, verdict, "judge" if rater == "gpt" else "human")
        for rater, own in rows.items()
        for item, verdict in own.items()
    ]


def test_a_table_by_hand():
    table = agreement_table(judgements(ROWS))
    assert table["num_items"] == 5
    ann, gpt = table["raters"]["ann"], table["raters"]["gpt"]
    assert {name: ann[name] for name in ("kind", "a", "b", "tie", "unparsable", "failed")} == {
        "kind": "human", "a": 3, "b": 1, "tie": 1, "unparsable": 0, "failed": 0
    }  # fmt: skip
    assert ann["win_rate"] == same(3.5 / 5) and gpt["win_rate"] == same(2.5 / 4) and gpt["unparsable"] == 1
    # Pairs of people: item 1 aaa (3 of 3), 2 abb (1 of 3), 3 tie-tie (1 of 1), 4 bba (1 of 3), 5 a-tie (0 of 1)
    people = table["human_human"]
    assert (people["ties_kept"]["agreement"], people["ties_kept"]["num_pairs"]) == (same(6 / 11), 11)
    assert (people["ties_dropped"]["agreement"], people["ties_dropped"]["num_pairs"]) == (same(5 / 9), 9)
    assert people["ties_dropped"]["num_items"] == 3 and people["ties_kept"]["num_items"] == 5
    # Fleiss, ties dropped: P of the items 1, 1/3, 1/3; shares of a and b 5/9 and 4/9
    chance = (5 / 9) ** 2 + (4 / 9) ** 2
    assert people["ties_dropped"]["kappa"] == same((5 / 9 - chance) / (1 - chance))
    # The judge: item 1 a-aaa, 2 b-abb, 3 a-tie,tie, 4 tie-bba
    judge = table["judge_human"]["gpt"]
    assert (judge["ties_dropped"]["agreement"], judge["ties_dropped"]["num_pairs"]) == (same(5 / 6), 6)
    assert (judge["ties_kept"]["agreement"], judge["ties_kept"]["num_pairs"]) == (same(5 / 11), 11)
    counts = np.array([[3, 0, 2], [1, 2, 0], [1, 2, 0]])  # of the judge's a, b, tie: people's a, b, tie
    assert judge["ties_kept"]["kappa"] == same(float(cohens_kappa(counts, return_results=False)))


def test_kappas_are_those_of_statsmodels():
    draws = np.random.default_rng(0).integers(0, 3, (40, 4))
    draws[:, 1] = np.where(draws[:, 0] > 0, draws[:, 0], draws[:, 1])
    names = np.array(["a", "b", "tie"])[draws]

    def rows(num: int) -> list[Judgement]:
        return [Judgement(str(i), f"r{j}", str(names[i, j])) for i in range(40) for j in range(num)]

    table = agreement_table(rows(4))["human_human"]["ties_kept"]
    assert table["kappa"] == same(float(fleiss_kappa(aggregate_raters(draws)[0])))
    assert table["agreement"] == same(float(np.mean([(row[:, None] == row).sum() - 4 for row in draws])) / 12)
    counts = np.zeros((3, 3))
    np.add.at(counts, (draws[:, 0], draws[:, 1]), 1)
    two = agreement_table(rows(2))["human_human"]["ties_kept"]
    assert two["kappa"] == same(float(cohens_kappa(counts, return_results=False)))
    assert two["low"] < two["agreement"] < two["high"]
    assert agreement_table(rows(2)[::-1])["human_human"]["ties_kept"]["kappa"] == same(two["kappa"])


def test_what_cannot_be_computed():
    everyone = agreement_table([Judgement("1", "ann", "a"), Judgement("1", "bob", "a"), Judgement("2", "ann", "a")])
    row = everyone["human_human"]["ties_dropped"]
    assert row["agreement"] == 1 and math.isnan(row["kappa"]) and math.isnan(row["low"])  # a kappa of 0 / 0
    alone = agreement_table([Judgement("1", "ann", "a"), Judgement("2", "bob", "b")])["human_human"]["ties_kept"]
    assert math.isnan(alone["agreement"]) and alone["num_pairs"] == 0
    only_ties = agreement_table([Judgement("1", "ann", "tie"), Judgement("1", "bob", "tie")])["human_human"]
    assert only_ties["ties_dropped"]["num_pairs"] == 0 and only_ties["ties_kept"]["agreement"] == 1


def test_coverage_of_the_interval(monkeypatch):
    """Two judgements of people on each of 60 items, which agree with the judge or not together."""
    monkeypatch.setattr(agreement, "_NUM_RESAMPLES", 400)
    draws = np.random.default_rng(0)
    num, covered = 400, 0
    for _ in range(num):
        hard = draws.random(60) < 0.5  # items of which people say a, as the judge does, with 0.55 and 0.95
        says_a = draws.random((60, 2)) < np.where(hard, 0.55, 0.95)[:, None]
        found = agreement._agreement(
            [[("a", "a" if a else "b") for a in item] for item in says_a], lambda: 0.0, seed=0
        )
        covered += found["low"] <= 0.75 <= found["high"]
    assert 0.92 <= covered / num <= 0.975  # 0.95 within 2.5 standard errors


def write(path: str, text: str) -> str:
    Path(path).write_text(text)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_command(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [vars(one) for one in judgements(ROWS)]
    if kind == "csv":
        lines = ["item,rater,verdict,kind", *(",".join(row.values()) for row in rows)]
    else:
        lines = [json.dumps(row | {"verdict": row["verdict"].upper()}) for row in rows]
    write(f"verdicts.{kind}", "\n".join(lines) + "\n")
    assert main(["agreement", f"verdicts.{kind}", "--output", "table.json"]) == 0
    table = json.loads(Path("table.json").read_text())
    expected = agreement_table(judgements(ROWS))
    assert table["human_human"] == expected["human_human"] and table["raters"] == expected["raters"]
    printed = capsys.readouterr().out
    assert "5 items" in printed and "people with each other  dropped         9" in printed
    assert "gpt with people         kept           11" in printed and "0.455 (" in printed


def test_rows_that_are_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    head = "item,rater,verdict"
    for text, problem in {
        f"{head}\n1,ann,c": "`verdict` in row 0 of v.csv is 'c'. Expected one of a, b, tie, unparsable, failed.",
        f"{head}\n1,ann,a\n1,ann,b": "`ann` judges the item `1` twice, in row 0 of v.csv and in row 1 of v.csv.",
        f"{head}\n1,,a": "`rater` in row 0 of v.csv is empty.",
        "item,raters,verdict\n1,ann,a": "There is no `rater` in row 0 of v.csv, only item, raters, verdict. Is it ",
        f"{head},kind\n1,ann,a,person": "`kind` in row 0 of v.csv is 'person'. Expected one of human, judge.",
        f"{head},kind\n1,ann,a,human\n2,ann,a,judge": "The rater `ann` is a human, and a judge in row 1",
    }.items():
        write("v.csv", f"{text}\n")
        assert main(["agreement", "v.csv"]) == 2
        assert problem in capsys.readouterr().err
    assert main(["agreement", "none.csv"]) == 2
    assert "none.csv does not exist" in capsys.readouterr().err
