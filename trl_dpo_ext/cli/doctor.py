"""`trl-dpo-ext doctor ROWS --tokenizer MODEL`: examines a dataset before training."""

import argparse
import json

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.words import WordParser, count, file_path, number


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Prints the report. Returns 0 if training would accept every row, 1 if not, and 2 if nothing was examined."""
    options = _parser().parse_args(argv)

    from transformers import AutoTokenizer
    from transformers.utils import CONFIG_NAME, cached_file

    from trl_dpo_ext.data.doctor.examination import examine
    from trl_dpo_ext.data.options import RowOptions
    from trl_dpo_ext.data.remote_code import remote_code_explained
    from trl_dpo_ext.data.sources import load_splits, split_of
    from trl_dpo_ext.models.limits import check_pad_token, limits_of

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
            has_model = cached_file(options.tokenizer, CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
            limits = limits_of(options.tokenizer, None, options.trust_remote_code) if has_model else None
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
    if limits is not None:
        try:
            check_pad_token(tokenizer, limits)
            limits.check_extent(report.extent, options.max_length, f"The {options.split} dataset")
        except ValueError as error:
            return fail("doctor", error, status=1)
    return 0 if report.healthy else 1


def _parser() -> argparse.ArgumentParser:
    parser = WordParser(
        "doctor",
        description="Examine a preference or ranking dataset: rows that training would reject, drop or truncate.",
        epilog="Exit status: 0, training would accept every row; 1, it would not; 2, nothing could be examined.",
    )
    parser.add_argument(
        "rows", metavar="ROWS", help=".jsonl, .json, .parquet, .csv or .arrow file, folder, or name of a hub dataset"
    )
    parser.add_argument("--tokenizer", required=True, metavar="MODEL", help="folder or name of the model to train")
    parser.add_argument("--split", default="train", help="split to examine (default: train)")
    parser.add_argument("--test_split", metavar="SPLIT", help="held-out split, to find prompts that are in both")
    parser.add_argument("--dataset_config", metavar="NAME", help="configuration of a dataset with several")
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
    parser.add_argument("--trust_remote_code", action="store_true", help="run code from the tokenizer's repository")
    parser.add_argument("--json", type=file_path, metavar="FILE", help="also write the report to FILE")
    return parser


def _length(text: str) -> int | None:
    return None if text.lower() in ("none", "null") else count()(text)
