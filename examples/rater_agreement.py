"""
Agreement of people on whether a snippet of a film review is positive: `trl-dpo-ext agreement` on real ratings.

    python examples/rater_agreement.py [--output_dir outputs/rater_agreement] [--judge]

The ratings are those of `vaderSentiment` 0.5, which `human_ratings_data.py` describes: 15 to 29 people rated each
snippet between -4 and 4. A verdict is the sign of a rating: `a` for positive, `b` for negative, and a tie for 0.
People are anonymous. The n-th rating of every snippet counts as the n-th rater's, although it may be another person's.

It writes the verdicts (`verdicts.csv`), the table of agreement (`agreement.json`), and the agreement of each rater
with the sign of the mean of the others (`raters.csv`). `--judge` adds VADER's rules as a judge (needs `vaderSentiment`
3.3.2). One archive of 2.4 MB is downloaded.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from human_ratings_data import SNIPPETS_ARCHIVE, RulesJudge, Snippet, download, read_snippets

from trl_dpo_ext.cli import main as trl_dpo_ext


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/rater_agreement"))
    parser.add_argument("--judge", action="store_true", help="add VADER's rules as a judge")
    options = parser.parse_args()
    output_dir = options.output_dir
    download(output_dir / "packages", [SNIPPETS_ARCHIVE])
    snippets = read_snippets(output_dir / "packages" / SNIPPETS_ARCHIVE)
    rows = [*verdicts_of(snippets), *(verdicts_of_rules(snippets) if options.judge else ())]
    write_csv(output_dir / "verdicts.csv", ["item", "rater", "verdict", "kind"], rows)
    print(f"{len(rows):,} verdicts on {len(snippets):,} snippets\n")
    if trl_dpo_ext(["agreement", str(output_dir / "verdicts.csv"), "--output", str(output_dir / "agreement.json")]):
        raise SystemExit(2)
    against_rest = agreement_with_the_rest(snippets)
    write_csv(output_dir / "raters.csv", ["rater", "agreement", "snippets"], against_rest)
    shares = [share for _, share, _ in against_rest]
    print(
        f"\nA rater and the mean of the others: {np.mean(shares):.3f} "
        f"({min(shares):.3f} to {max(shares):.3f} of {len(shares)} raters)"
    )


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def verdict_of(value: float) -> str:
    return "tie" if value == 0 else "a" if value > 0 else "b"


def verdicts_of(snippets: Sequence[Snippet]) -> Iterator[tuple[int, str, str, str]]:
    """Yields item, rater, verdict and kind of each rating."""
    for item, snippet in enumerate(snippets):
        for number, rating in enumerate(snippet.ratings, start=1):
            yield item, f"rater {number}", verdict_of(rating), "human"


def verdicts_of_rules(snippets: Sequence[Snippet]) -> Iterator[tuple[int, str, str, str]]:
    """Yields those of VADER's rules."""
    texts = [[{"role": "assistant", "content": snippet.text}] for snippet in snippets]
    for item, score in enumerate(RulesJudge()([""] * len(texts), texts)):
        yield item, "VADER's rules", verdict_of(score), "judge"


def agreement_with_the_rest(snippets: Sequence[Snippet]) -> list[tuple[str, float, int]]:
    """
    Returns, for each rater, the share of the snippets on which the sign of the rating is that of the mean of the
    others, and the number of these snippets. Neither may be 0.
    """
    agreeing: dict[int, list[bool]] = {}
    for snippet in snippets:
        total = sum(snippet.ratings)
        for number, rating in enumerate(snippet.ratings, start=1):
            rest = total - rating
            if rating and rest:
                agreeing.setdefault(number, []).append((rating > 0) == (rest > 0))
    return [(f"rater {number}", float(np.mean(own)), len(own)) for number, own in sorted(agreeing.items())]


if __name__ == "__main__":
    main()
