"""`trl-dpo-ext report RUN_DIR`: one page with the metrics of a run."""

import sys
from pathlib import Path

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.words import WordParser
from trl_dpo_ext.spelling import did_you_mean_path


__all__ = ["run"]


def run(argv: list[str]) -> int:
    """Writes `report.png` and `report.html`. Returns 2 if the folder has no run, or matplotlib is not installed."""
    parser = WordParser(
        "report",
        description="Draw the metrics of a run on one page, report.png and report.html. The run may still be running.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="`output_dir` of the run")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="output folder (default: RUN_DIR)")
    options = parser.parse_args(argv)

    from trl_dpo_ext.report.run_data import read_run

    try:
        data = read_run(options.run_dir)
        from trl_dpo_ext.report.page import write_report

        png, html = write_report(data, options.output)
    except FileNotFoundError as error:
        return fail("report", f"{error} {_hint(options.run_dir)}")
    except (ImportError, OSError) as error:
        return fail("report", error)
    for note in data.notes:
        print(f"Note: {note}", file=sys.stderr)
    print(f"Wrote {html} and {png}.")
    return 0


def _hint(folder: Path) -> str:
    from trl_dpo_ext.report.run_data import find_runs

    if folder.is_file():
        return f"It is a file. Pass its folder, {folder.parent}."
    if not folder.is_dir():
        return did_you_mean_path(folder, folders=True).strip() or "Pass the `output_dir` of a run."
    if runs := find_runs(folder):
        return f"Runs in its subfolders: {', '.join(map(str, runs))}."
    return "Pass the `output_dir` of a run. Metrics are logged every `logging_steps` updates."
