"""The quickstart's reviews, its reward, and the folder that it writes to."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from trl_dpo_ext.cli import main
from trl_dpo_ext.quickstart.sentiment_reward import SentimentReward
from trl_dpo_ext.quickstart.sentiment_task import REVIEWS, load_reviews


ROOT = Path(__file__).parents[2]


def test_reviews_are_those_of_the_generator():
    spec = importlib.util.spec_from_file_location("film_reviews", ROOT / "examples" / "film_reviews.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert "".join(generator.review_lines()) == REVIEWS.read_text(encoding="utf-8")


def test_reward_is_the_logistic_regression_of_scikit_learn():
    reviews = load_reviews()[:300]
    texts = [review["text"] for review in reviews]
    vectors = CountVectorizer(ngram_range=(1, 2), binary=True)
    expected = make_pipeline(vectors, LogisticRegression(C=0.05, tol=1e-10, max_iter=10_000))
    expected.fit(texts, [review["sentiment"] == "good" for review in reviews])
    completions = [*texts[:50], " It was fine.", " Unheard words alone", "", " it it it, was WAS fine"]
    rewards = SentimentReward(reviews)([""] * len(completions), completions)
    # The gradient of a loss whose second derivative is at least 1 is below 1e-5, and so is the error of the weights.
    # At most 40 weights are added
    assert np.abs(rewards - expected.predict_proba(completions)[:, 1]).max() < 1e-5 * 40


def test_other_files_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["quickstart", "--quick", "--output_dir", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
