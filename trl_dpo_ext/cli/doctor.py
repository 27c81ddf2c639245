"""`trl-dpo-ext doctor ROWS --tokenizer MODEL`: examines a data set before training."""

import argparse
import json

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.words import WordParser, count, file_path, number


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Prints the report; 0 if training would take every row, 1 if not, 2 if there is nothing to examine."""
    options = _parser().parse_args(argv)

    from transformers import AutoTokenizer

    from trl_dpo_ext.data.doctor.examination import examine
    from trl_dpo_ext.data.options import RowOptions
    from trl_dpo_ext.data.remote_code import remote_code_explained
    from trl_dpo_ext.data.sources import load_splits, split_of

    try:
        row_options = RowOptions.of(options)
        splits = load_splits(options.rows, option="ROWS", dataset_config=options.dataset_config)
        dataset = split_of(splits, options.rows, options.split, option="split")
        held_out = None
        if options.test_split:
            held_out = split_of(splits, options.rows, options.test_split, option="test_split")
        if options.first is not None:
            dataset = dataset.select(range(min(options.first, len(dataset))))
        with remote_code_explained(options.tokenizer, "Pass --trust_remote_code to run it."):
            tokenizer = AutoTokenizer.from_pretrained(options.tokenizer, trust_remote_code=options.trust_remote_code)
        report = examine(
            dataset,
            tokenizer,
            dataset_name=options.split,
            held_out=held_out,
            score_tie_gap=options.score_tie_gap,
            max_completions=options.max_completions,
            **vars(row_options),
        )
    except (ValueError, OSError) as error:
        return fail("doctor", error)
    print(report)
    if options.json:
        try:
            options.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
        except OSError as error:
            return fail("doctor", f"`json`: {options.json} cannot be written: {error.strerror}.")
    return 0 if report.healthy else 1


def _parser() -> argparse.ArgumentParser:
    parser = WordParser(
        "doctor",
        description="Examine a preference or ranking dataset: rows that training would refuse, leave out or truncate.",
        epilog="Exit status: 0, training would take every row; 1, it would not; 2, nothing could be examined.",
    )
    parser.add_argument(
        "rows", metavar="ROWS", help=".jsonl, .json, .parquet, .csv or .arrow file, folder, or name of a hub data set"
    )
    parser.add_argument("--tokenizer", required=True, metavar="MODEL", help="folder or name of the model to train")
    parser.add_argument("--split", default="train", help="split to examine; `train` by default")
    parser.add_argument("--test_split", metavar="SPLIT", help="held-out split: prompts that both have are found")
    parser.add_argument("--dataset_config", metavar="NAME", help="configuration, of a data set that has several")
    parser.add_argument("--rows", dest="first", type=count(), metavar="N", help="only the first N rows")
    parser.add_argument("--tokenization", default="separate", choices=["separate", "joint"], help="as in training")
    parser.add_argument(
        "--max_length",
        type=_length,
        default=512,
        metavar="N",
        help="as in training (default: 512; `none`: no truncation)",
    )
    parser.add_argument("--max_prompt_length", type=count(), metavar="N", help="as in training")
    modes = ["keep_start", "keep_end"]
    parser.add_argument("--prompt_truncation_mode", choices=modes, help="as in training")
    parser.add_argument("--truncation_mode", default="keep_start", choices=modes, help="as in training")
    parser.add_argument(
        "--score_tie_gap", type=number(above_0=False), default=0.0, metavar="GAP", help="as in training on rankings"
    )
    parser.add_argument("--max_completions", type=count(least=2), metavar="K", help="as in training on rankings")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that the tokenizer comes with")
    parser.add_argument("--json", type=file_path, metavar="FILE", help="write the report to FILE as well")
    return parser


def _length(text: str) -> int | None:
    return None if text.lower() in ("none", "null") else count()(text)
