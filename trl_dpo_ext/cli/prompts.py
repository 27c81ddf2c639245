"""`trl-dpo-ext prompts`: writes prompts of the paper's tasks with their human answers."""

import argparse
import sys
from pathlib import Path

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.model_options import ROWS_HELP
from trl_dpo_ext.cli.words import WordParser, count, file_path


__all__ = ["run"]

_DESCRIPTION = """\
Write prompts of a task of the DPO paper (Sec. 6.2 to 6.4) with their human answers.

OUTPUT has a row for each prompt: prompt_id (index of the row), prompt, completion (the human answer) and source_id
(column `id` of the dataset, if there is one). The same file is PROMPTS of `sample` and --baseline of `win-rate`.

TASK           dataset (split test)  prompt                                    completion
hh             Anthropic/hh-rlhf     dialogue up to the last "\\n\\nAssistant:"  preferred answer
tldr           trl-lib/tldr          Reddit post, then "TL;DR:"                its author's summary
cnn_dailymail  abisee/cnn_dailymail  news article, then "TL;DR:"               highlights
"""
_EPILOG = """\
Of hh, dialogues with one human turn are kept. tldr also accepts rows of CarperAI/openai_summarize_tldr (prompt, label)
and of its source, tldr_3_filtered (subreddit, title, post, summary). Prompts should have the format of the training
data.

Empty rows, and rows with the prompt of an earlier row, are left out. The number of rows left out is printed.

The order of the prompts is drawn by --seed. It depends on their texts only: --num 100 are the first rows of --num 200.

exit status: 0, OUTPUT is written; 2, it is not (see the message).
"""


def run(argv: list[str]) -> int:
    """Runs the command. Returns 0, or 2 if nothing was written."""
    options = _parser().parse_args(argv)
    try:
        return _prompts(options)
    except (ValueError, OSError) as error:
        return fail("prompts", error)


def _parser() -> argparse.ArgumentParser:
    parser = WordParser(
        "prompts",
        usage="trl-dpo-ext prompts TASK --output OUTPUT [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # The names of `evaluation.paper_tasks`, whose import takes seconds
    parser.add_argument("task", metavar="TASK", choices=["hh", "tldr", "cnn_dailymail"], help="%(choices)s")
    parser.add_argument("--output", type=file_path, metavar="OUTPUT", required=True, help=".jsonl file to write")
    parser.add_argument("--num", type=count(), metavar="N", help="number of prompts (default: all)")
    parser.add_argument("--seed", type=count(0), default=0, help="seed of the order (default: 0)")
    parser.add_argument(
        "--max_prompt_chars", type=count(), metavar="N", help="leave out prompts of more characters (default: none)"
    )
    parser.add_argument("--dataset", metavar="ROWS", help=f"other source of rows: {ROWS_HELP}")
    parser.add_argument("--split", help="split of the dataset (default: test; of a file: train, the only one)")
    parser.add_argument("--dataset_config", help="configuration of a dataset with several")
    return parser


def _prompts(options: argparse.Namespace) -> int:
    from trl_dpo_ext.evaluation.paper_tasks import PAPER_TASKS, task_prompts
    from trl_dpo_ext.reward_model.files.join_parts import to_json
    from trl_dpo_ext.reward_model.files.row_sources import open_rows
    from trl_dpo_ext.whole_file import write_text

    task = PAPER_TASKS[options.task]
    dataset = options.dataset or task.dataset
    source = open_rows(
        dataset,
        rows_per_part=10_000,
        split=options.split or ("train" if Path(dataset).is_file() else "test"),
        dataset_config=options.dataset_config or (None if options.dataset else task.dataset_config),
        option="--dataset",
    )
    found = task_prompts(task, source, num=options.num, seed=options.seed, max_prompt_chars=options.max_prompt_chars)
    write_text(options.output, "".join(map(to_json, found.rows)))
    print(f"Wrote {options.output}: {len(found.rows)} of {found.num_prompts} prompts.", file=sys.stderr)
    for reason, number in found.left_out.items():
        print(f"Left out {number} of {found.num_rows} rows {reason}.", file=sys.stderr)
    return 0
