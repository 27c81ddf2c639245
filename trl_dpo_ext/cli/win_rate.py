"""`trl-dpo-ext win-rate`: which share of a policy's completions a judge prefers to those of a baseline."""

import argparse
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.model_options import ROWS_HELP, add_row_options
from trl_dpo_ext.cli.pictures import write_pictures
from trl_dpo_ext.cli.reward_options import add_reward_options, load_rewards
from trl_dpo_ext.cli.words import WordParser, count, file_path, number


__all__ = ["run"]

_DESCRIPTION = """\
Win rate of policies over a baseline, by a judge, a reward or people.

--policy and --baseline are files of completions, with the columns `prompt` and `completion`, as `trl-dpo-ext sample`
and `trl-dpo-ext prompts` write them. Completions are compared by `prompt_id` where both files have it, else by
`prompt`. Several --policy files are several policies, or one policy at several temperatures. NAME=FILE names them.

OUTPUT, such as verdicts.jsonl, gets a line for each verdict. It is only appended to. Beside it:
  verdicts.summary.json   win rate with its standard error and interval (clustered by prompt), bounds, counts,
                          preference for the first position, win rate at equal length; for several policies paired
                          differences
  verdicts.html, .png     the same as a page with pictures and examples

The judge is one of:
  --judge URL --judge_model NAME   a model behind an endpoint that speaks the OpenAI chat protocol
  --judge_function                 a Python function f(prompt, first, second) that returns A, B or tie
  --reward_function, --reward_model, --implicit_reward   a reward: the completion with the larger one is preferred
  --human SHEET                    people who filled in a rating sheet, which --write_sheet writes

A chat judge sees each comparison in both orders. Its answer must end with the line `Preferred: A`, `Preferred: B` or
`Preferred: tie`. Other answers are unparsable: they are counted and never guessed.
"""
_EPILOG = """\
To resume, repeat the same command. Nothing that was answered is asked again. What failed is asked again.

exit status: 0, the summary is written; 1, --max_requests was reached, and all verdicts so far are in OUTPUT; 2, there
is no summary (see the message); 130, interrupted, and all verdicts so far are in OUTPUT.

The key is read from the variable that --api_key_env names. It is in no file, log or error.
"""
_JUDGES = ("judge", "judge_function", "reward_function", "reward_model", "implicit_reward", "human")
# Letters of a token of English text, about
_LETTERS_PER_TOKEN = 4
_FLAGS = {"`rater`": "--rater"}


def run(argv: list[str]) -> int:
    """Runs the command. Returns 0, or another status if no summary was written."""
    from trl_dpo_ext.evaluation.judging.judges import RequestLimitReached

    options = _parser().parse_args(argv)
    try:
        return _win_rate(options)
    except RequestLimitReached as error:
        return fail(
            "win-rate", f"{error} (--max_requests). {options.output} has the verdicts so far. Repeat to go on.", 1
        )
    except KeyboardInterrupt:
        return fail("win-rate", f"interrupted. {options.output} has the verdicts so far. Repeat to go on.", 130)
    except (ValueError, OSError, ImportError) as error:
        message = str(error)
        for argument, flag in _FLAGS.items():
            message = message.replace(argument, flag)
        return fail("win-rate", message)
    except Exception:  # Python would exit with status 1
        traceback.print_exc()
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = WordParser(
        "win-rate",
        usage="trl-dpo-ext win-rate --policy FILE [FILE ...] --baseline FILE --output OUTPUT JUDGE [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--policy", metavar="[NAME=]FILE", nargs="+", required=True, help="completions of policies: " + ROWS_HELP
    )
    parser.add_argument("--baseline", metavar="FILE", required=True, help="completions to compare with")
    parser.add_argument("--output", type=Path, metavar="OUTPUT", required=True, help=".jsonl file of verdicts")
    parser.add_argument("--rater", metavar="NAME", help="name of the judge (default: its model and prompt)")
    parser.add_argument(
        "--order",
        choices=["both", "random"],
        default="both",
        help="show each comparison in both orders, or in one at random (default: both)",
    )
    parser.add_argument("--seed", type=count(0), default=0, help="seed of the random order (default: 0)")
    add_row_options(parser)
    chat = parser.add_argument_group("a chat judge")
    chat.add_argument("--judge", metavar="URL", help="address of the API, such as http://localhost:8000/v1")
    chat.add_argument("--judge_model", metavar="NAME", help="name of the model there")
    chat.add_argument(
        "--judge_prompt",
        metavar="NAME",
        default="dialogue",
        help="dialogue, summary, summary-concise, news, or a text file with {prompt}, {first} and {second} "
        "(default: dialogue)",
    )
    chat.add_argument(
        "--judge_parameters",
        type=_parameters,
        metavar="JSON",
        help='options of the request (default: {"temperature": 0, "max_tokens": 1024}); null removes one',
    )
    chat.add_argument(
        "--api_key_env",
        metavar="VARIABLE",
        help="environment variable with the key (default: OPENAI_API_KEY, if it is set)",
    )
    chat.add_argument("--concurrency", type=count(), default=8, metavar="N", help="requests at a time (default: 8)")
    chat.add_argument(
        "--timeout",
        type=number(above_0=True),
        default=120.0,
        metavar="SECONDS",
        help="wait for a response (default: 120)",
    )
    chat.add_argument(
        "--max_retries", type=count(0), default=5, metavar="N", help="further attempts of a request (default: 5)"
    )
    chat.add_argument(
        "--max_requests", type=count(), metavar="N", help="stop after N requests, further attempts included"
    )
    chat.add_argument(
        "--dry_run", action="store_true", help="print the number of requests, the cost and the first request, and stop"
    )
    chat.add_argument(
        "--input_price", type=number(above_0=False), metavar="PRICE", help="price of a million tokens of input"
    )
    chat.add_argument(
        "--output_price", type=number(above_0=False), metavar="PRICE", help="price of a million tokens of output"
    )
    others = parser.add_argument_group("other judges")
    others.add_argument(
        "--judge_function", metavar="MODULE:NAME", help="function f(prompt, first, second) of a module or a .py file"
    )
    add_reward_options(others)
    others.add_argument("--device", help="device of the reward, for example cpu or cuda:1")
    others.add_argument("--human", nargs="+", metavar="SHEET", help="rating sheets that people filled in (.csv)")
    others.add_argument("--write_sheet", type=file_path, metavar="SHEET", help="write a rating sheet (.csv), and stop")
    return parser


def _parameters(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object")
    return found


def _win_rate(options: argparse.Namespace) -> int:
    from trl_dpo_ext.evaluation.judging.rating_sheet import write_rating_sheet
    from trl_dpo_ext.evaluation.judging.verdicts import VerdictFile
    from trl_dpo_ext.evaluation.judging.win_rate_files import PolicyFiles, write_summary
    from trl_dpo_ext.evaluation.policies.estimates import t_distribution
    from trl_dpo_ext.evaluation.resumable_file import check_output

    _check_judge(options)
    check_output(options.output)
    t_distribution()  # raises an error now, and not after the last verdict
    files = PolicyFiles.read(
        options.policy, options.baseline, split=options.split, dataset_config=options.dataset_config
    )
    for file in files.files:
        _report_unmatched(file, options.baseline)
    if options.write_sheet:
        num = write_rating_sheet(files.comparisons, options.write_sheet, seed=options.seed)
        print(f"Wrote {options.write_sheet}: {num} comparisons to fill in.", file=sys.stderr)
        return 0
    verdicts = VerdictFile(options.output)
    if options.dry_run:
        return _dry_run(options, files, verdicts.read())
    with verdicts.opened():
        raters = _judge(options, files, verdicts)
        summary = files.summary(verdicts, raters)
        path = write_summary(summary, options.output)
    print(_table(summary))
    print(f"Wrote {path}.", file=sys.stderr)
    write_pictures("win_rate_page", "write_win_rate_page", path)
    return 0


def _check_judge(options: argparse.Namespace) -> None:
    named = [f"--{name}" for name in _JUDGES if getattr(options, name)]
    named += ["--write_sheet"] if options.write_sheet else []
    if len(named) != 1 or len(options.reward_function) > 1:
        found = ", ".join(named) or "none"
        raise ValueError(
            f"One judge is needed: {', '.join(f'--{name}' for name in _JUDGES)} or --write_sheet. There is {found}."
        )
    if (options.judge is None) != (options.judge_model is None):
        raise ValueError("--judge URL and --judge_model NAME belong together. Pass both.")
    if options.dry_run and not options.judge:
        raise ValueError("--dry_run is about the requests to a chat judge. Pass --judge and --judge_model.")
    if options.order == "random" and not (options.judge or options.judge_function):
        raise ValueError("--order random has no effect on this judge. It sees no order, or the order of the sheet.")


def _report_unmatched(file: Any, baseline: str) -> None:
    if file.only_policy:
        print(f"{file.path}: {file.only_policy} prompts are not in {baseline} and are left out.", file=sys.stderr)
    if file.only_baseline:
        print(f"{baseline}: {file.only_baseline} prompts are not in {file.path} and are left out.", file=sys.stderr)


def _judge(options: argparse.Namespace, files: Any, verdicts: Any) -> list[Any]:
    """Gets the verdicts that are missing. Returns the raters."""
    from trl_dpo_ext.evaluation.judging.asking import ask_judge
    from trl_dpo_ext.evaluation.judging.judges import FunctionJudge
    from trl_dpo_ext.evaluation.judging.reward_verdicts import judge_by_reward
    from trl_dpo_ext.evaluation.rewards.reward_function import load_function

    if options.human:
        return _read_sheets(options, files, verdicts)
    if options.judge or options.judge_function:
        judge: Any
        if options.judge:
            judge = _chat_judge(options)
        else:
            judge = FunctionJudge(load_function(options.judge_function), options.rater)
        num_new = ask_judge(
            judge,
            files.comparisons,
            verdicts,
            order=options.order,
            seed=options.seed,
            concurrency=options.concurrency,
        )
        raters = [judge.identity]
    else:
        [(name, reward)] = load_rewards(options).items()
        identity, num_new = judge_by_reward(reward, files.comparisons, verdicts, rater=options.rater or name)
        raters = [identity]
    print(f"{num_new} new verdicts of {raters[0].rater}.", file=sys.stderr)
    return raters


def _read_sheets(options: argparse.Namespace, files: Any, verdicts: Any) -> list[Any]:
    from trl_dpo_ext.evaluation.judging.rating_sheet import add_ratings, read_ratings
    from trl_dpo_ext.evaluation.judging.verdicts import RaterIdentity
    from trl_dpo_ext.evaluation.judging.win_rate_files import open_completions

    names: dict[str, None] = {}
    for sheet in options.human:
        source = open_completions(sheet, "--human")
        ratings, num_empty = read_ratings(source, files.comparisons, rater=options.rater or Path(sheet).stem)
        num_new = add_ratings(ratings, verdicts)
        names |= dict.fromkeys(rating.rater for rating in ratings)
        print(f"{sheet}: {len(ratings)} ratings, {num_new} of them new; {num_empty} rows are empty.", file=sys.stderr)
    if not names:
        raise ValueError("No rating is filled in. Write A, B or tie into the column `preferred`.")
    return [RaterIdentity(name, "human") for name in names]


def _chat_judge(options: argparse.Namespace) -> Any:
    from trl_dpo_ext.evaluation.judging.chat_judge import ChatJudge
    from trl_dpo_ext.evaluation.judging.judge_prompts import load_judge_prompt

    variable = options.api_key_env or "OPENAI_API_KEY"
    key = os.environ.get(variable)
    if options.api_key_env and not key:
        raise ValueError(f"The environment variable {variable} with the key is not set (--api_key_env).")
    url = urlsplit(options.judge)
    if key and url.scheme == "http" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
        print(f"The key of {variable} is sent to {url.hostname} without encryption.", file=sys.stderr)
    return ChatJudge(
        options.judge,
        options.judge_model,
        load_judge_prompt(options.judge_prompt),
        api_key=key,
        rater=options.rater,
        parameters=options.judge_parameters,
        timeout=options.timeout,
        max_retries=options.max_retries,
        max_requests=options.max_requests,
    )


def _dry_run(options: argparse.Namespace, files: Any, verdicts: Any) -> int:
    from trl_dpo_ext.evaluation.judging.asking import unanswered

    judge = _chat_judge(options)
    verdicts.check_rater(judge.identity)
    rater = judge.identity.rater
    questions = unanswered(files.comparisons, verdicts, rater, order=options.order, seed=options.seed)
    asked = [judge.question(*question) for question in questions]
    input_tokens = sum(map(len, asked)) // _LETTERS_PER_TOKEN
    parameters = judge.identity.parameters
    limit = parameters.get("max_tokens") or parameters.get("max_completion_tokens")
    print(f"comparisons      {len({one.item for one in files.comparisons}):,}")
    print(f"requests         {len(asked):,} without an answer, of {rater}")
    print(f"tokens of input  about {input_tokens:,}, at {_LETTERS_PER_TOKEN} letters a token")
    if limit is not None:
        print(f"tokens of output at most {limit * len(asked):,}")
    if options.input_price is not None and options.output_price is not None and limit is not None:
        least = input_tokens * options.input_price / 1e6
        most = least + limit * len(asked) * options.output_price / 1e6
        print(f"cost             about {least:,.2f} for the input, at most {most:,.2f} with the output")
    if asked:
        print(f"\nThe first request, with {json.dumps(parameters)}:\n\n{asked[0]}")
    return 0


def _table(summary: dict[str, Any]) -> str:
    """A line for each file of completions, and for each paired difference."""
    entries = summary.get("policies", [summary])
    temperatures = ["" if one["temperature"] is None else f"{one['temperature']:g}" for one in entries]
    width = max(len("policy"), *(len(one["policy"]) for one in entries))
    lines = [
        f"{'policy':<{width}}  {'T':<5}{'win rate (95 %)':<25}{'bounds':<16}{'at equal length':<16}"
        f"{'wins':>6}{'losses':>8}{'ties':>6}{'flips':>7}{'unparsable':>12}{'failed':>8}"
    ]
    for entry, temperature in zip(entries, temperatures, strict=True):
        bounds = " to ".join(map(_number, entry["win_rate_bounds"]))
        lines.append(
            f"{entry['policy']:<{width}}  {temperature:<5}{_with_interval(entry):<25}{bounds:<16}"
            f"{_number(entry['length_controlled_win_rate']):<16}{entry['consistent_wins']:>6}"
            f"{entry['consistent_losses']:>8}{entry['ties']:>6}{entry['flips']:>7}{entry['unparsable']:>12}"
            f"{entry['failed']:>8}"
        )
    for row in summary.get("differences", ()):
        at = "" if row["temperature"] is None else f" at T = {row['temperature']:g}"
        lines.append(f"{row['policy']} - {row['other']}{at}: {_with_interval(row)}")
    for entry in entries:
        if entry["length_controlled_note"]:
            lines.append(f"No win rate at equal length of {entry['policy']}: {entry['length_controlled_note']}.")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _with_interval(row: dict[str, Any]) -> str:
    if row["win_rate"] is None:
        return "no verdict"
    if row["win_rate_low"] is None:
        return _number(row["win_rate"])
    return f"{_number(row['win_rate'])} ({_number(row['win_rate_low'])} to {_number(row['win_rate_high'])})"
