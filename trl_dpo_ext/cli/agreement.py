"""`trl-dpo-ext agreement`: how far people agree with each other, and judges with people."""

import argparse
import sys
from pathlib import Path
from typing import Any

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.model_options import ROWS_HELP, add_row_options
from trl_dpo_ext.cli.words import WordParser, count, file_path


__all__ = ["run"]

_DESCRIPTION = """\
Agreement of people with each other and of judges with people (Table 2 of the DPO paper).

FILE has a row for each verdict, with the columns
  item      the comparison: a pair of completions, the same for all raters
  rater     the person or judge
  verdict   a, b or tie; unparsable or failed if there is none
  kind      human or judge (optional; default: human)

Agreement is over pairs of verdicts on the same item, with ties dropped and with ties kept. Kappa is agreement beyond
chance: Cohen's of two raters and of a judge with people, Fleiss' of more than two people. Intervals are 95 % bootstrap
intervals over items.
"""
_EPILOG = "exit status: 0, the table is printed; 2, it is not (see the message)."


def run(argv: list[str]) -> int:
    """Runs the command. Returns 0, or 2 if there is no table."""
    parser = WordParser(
        "agreement",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verdicts", metavar="FILE", help=ROWS_HELP)
    parser.add_argument("--output", type=file_path, metavar="TABLE", help=".json file to write")
    parser.add_argument("--seed", type=count(0), default=0, help="seed of the bootstrap (default: 0)")
    add_row_options(parser)
    options = parser.parse_args(argv)
    try:
        return _agreement(options)
    except (ValueError, OSError, ImportError) as error:
        return fail("agreement", error)


def _agreement(options: argparse.Namespace) -> int:
    from trl_dpo_ext.evaluation.json_results import as_json, write_json
    from trl_dpo_ext.evaluation.judging.agreement import agreement_table
    from trl_dpo_ext.evaluation.judging.judgements import read_judgements
    from trl_dpo_ext.reward_model.files.row_sources import open_rows

    rows = open_rows(
        options.verdicts,
        rows_per_part=10_000,
        split=options.split,
        dataset_config=options.dataset_config,
        option="FILE",
    )
    table = as_json(agreement_table(read_judgements(rows), seed=options.seed))
    print(_shown(table))
    if options.output:
        path = Path(options.output)
        write_json(path, table)
        print(f"Wrote {path}.", file=sys.stderr)
    return 0


def _shown(table: dict[str, Any]) -> str:
    lines = [
        f"{table['num_items']} items",
        "",
        f"{'rater':<24}{'kind':<8}{'verdicts':>9}{'ties':>6}{'none':>6}  win rate of a",
    ]
    for rater, row in table["raters"].items():
        verdicts = row["a"] + row["b"] + row["tie"]
        none = row["unparsable"] + row["failed"]
        rate = _with_interval(row["win_rate"], row["win_rate_low"], row["win_rate_high"])
        lines.append(f"{rater[:23]:<24}{row['kind']:<8}{verdicts:>9}{row['tie']:>6}{none:>6}  {rate}")
    lines += ["", f"{'agreement':<24}{'ties':<9}{'pairs':>8}{'kappa':>8}  agreement"]
    named = {"people with each other": table["human_human"]}
    named |= {f"{judge[:11]} with people": rows for judge, rows in table["judge_human"].items()}
    for name, rows in named.items():
        for ties, row in rows.items():
            kappa = "" if row["kappa"] is None else f"{row['kappa']:.3f}"
            rate = _with_interval(row["agreement"], row["low"], row["high"])
            lines.append(f"{name:<24}{ties.removeprefix('ties_'):<9}{row['num_pairs']:>8}{kappa:>8}  {rate}")
    return "\n".join(lines)


def _with_interval(rate: float | None, low: float | None, high: float | None) -> str:
    if rate is None:
        return "no pair"
    return f"{rate:.3f}" if low is None else f"{rate:.3f} ({low:.3f} to {high:.3f})"
