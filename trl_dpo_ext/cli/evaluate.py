"""`trl-dpo-ext evaluate`: reward, KL and best of N of policies on the prompts of a file."""

import argparse
import functools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_dpo_ext.cli.failure import fail
from trl_dpo_ext.cli.launch import connect, hub_name_explained
from trl_dpo_ext.cli.model_options import (
    MODEL_OPTIONS,
    ROWS_HELP,
    add_model_options,
    add_row_options,
    add_sampling_options,
    given,
    sampling_options,
)
from trl_dpo_ext.cli.pictures import write_pictures
from trl_dpo_ext.cli.reward_options import add_reward_options, load_rewards
from trl_dpo_ext.cli.words import WordParser, count


__all__ = ["run"]

_DESCRIPTION = """\
Evaluate policies on prompts: reward, KL from the reference, win rate over the reference, best of N.

Policies and reference are sampled on the same prompts. OUTPUT is a folder, or a .json file; the files below are named
after it:
  evaluation.json       means and standard errors (_se, clustered by prompt) for each policy and for the reference, and
                        paired differences between them with 95 % intervals
  evaluation.html       the same as a page with pictures, and evaluation.png
  evaluation.samples/   samples, as `trl-dpo-ext sample` writes them
  evaluation.records/   samples with their rewards and KL: every number can be computed again

kl is the KL of the policy from the reference over whole completions, in nats: the exact KL of every step, summed over
the steps of samples of the policy. kl_k1 estimates the same by the log-ratio of the sampled tokens. With a
temperature, --top_k or --top_p, kl is that of the distribution that is sampled from the reference as it is.

A reward is a function f(prompts, completions), a classifier, a reward model or an implicit reward. The first one is
the reward that the results name. Completions of messages are passed as messages, as TRL does.
"""
_EPILOG = """\
To resume an interrupted evaluation, repeat the same command. Finished samples and records are kept, also if another
policy is added.

exit status: 0, the results are written; 2, they are not (see the message).

Several processes: accelerate launch -m trl_dpo_ext.cli evaluate POLICY PROMPTS --output OUTPUT ...
"""
# Arguments that messages of the package name, and their options here
_FLAGS = {
    "`reference=`": "--reference",
    "`label`": "--reward_label",
    "`label=": "`--reward_label ",
    "`overwrite`": "--overwrite",
    "`max_new_tokens`": "--max_new_tokens",
}


def run(argv: list[str]) -> int:
    """Runs the command. Returns 0, or 2 if no results were written."""
    options = _parser().parse_args(argv)
    try:
        return _evaluate(options)
    except (ValueError, OSError, ImportError) as error:
        message = str(error)
        for argument, flag in _FLAGS.items():
            message = message.replace(argument, flag)
        return fail("evaluate", message)
    except Exception:  # Python would exit with status 1
        traceback.print_exc()
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = WordParser(
        "evaluate",
        usage="trl-dpo-ext evaluate POLICY [POLICY ...] PROMPTS --output OUTPUT [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "policies", metavar="POLICY", nargs="+", help="folders or hub names of policies (models or adapters)"
    )
    parser.add_argument("prompts", metavar="PROMPTS", help=f"{ROWS_HELP}, with a column `prompt`")
    parser.add_argument("--output", metavar="OUTPUT", required=True, help="folder, or .json file, to write")
    parser.add_argument("--overwrite", action="store_true", help="replace samples and records of other settings")
    parser.add_argument(
        "--reference", help="folder or hub name of the reference (default: as in training, for one policy)"
    )
    parser.add_argument(
        "--samples",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a file of samples of each policy, in place of sampling the policies",
    )
    parser.add_argument(
        "--best_of_n",
        nargs="+",
        type=count(),
        metavar="N",
        help="numbers of samples for best of N (default: those of 1, 4, 16, 64 and 128 up to --num_samples)",
    )
    add_row_options(parser)
    add_reward_options(parser.add_argument_group("rewards"))
    add_sampling_options(parser)
    add_model_options(parser.add_argument_group("the models"))
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    from trl_dpo_ext.evaluation.policies.policy_files import (
        BEST_OF,
        EvaluationFiles,
        PolicySource,
        distinct_names,
        evaluate_files,
    )
    from trl_dpo_ext.evaluation.samples.sample_file import open_prompts
    from trl_dpo_ext.processes import together
    from trl_dpo_ext.sampling.options import SamplingOptions

    if options.reference is None and len(options.policies) > 1:
        raise ValueError("Several policies need a common reference. Pass --reference.")
    if options.samples and len(options.samples) != len(options.policies):
        raise ValueError(f"--samples has {len(options.samples)} files for {len(options.policies)} policies.")
    files = EvaluationFiles.of(options.output)
    *names, ref_name = distinct_names([*options.policies, options.reference or f"{options.policies[0]}/reference"])
    sampling = _sampling(options)
    num_samples = SamplingOptions(**sampling).num_samples
    if options.best_of_n and max(options.best_of_n) > num_samples:
        raise ValueError(
            f"--best_of_n {max(options.best_of_n)} needs as many samples. --num_samples is {num_samples}."
        )
    state = connect(options.device)
    with together():  # before models are loaded, which may take minutes
        files.results.parent.mkdir(parents=True, exist_ok=True)
        prompts = open_prompts(
            options.prompts, SamplingOptions(**sampling), split=options.split, dataset_config=options.dataset_config
        )
        rewards = load_rewards(options)
    openers = _openers(options, sampling)
    policies = [
        PolicySource(name, path, openers[path], samples)
        for name, path, samples in zip(names, options.policies, options.samples or [None] * len(names), strict=True)
    ]
    reference = PolicySource(ref_name, options.reference or options.policies[0], openers[None])
    result = evaluate_files(
        policies, reference, prompts, rewards, files, best_of=options.best_of_n or BEST_OF, overwrite=options.overwrite
    )
    state.destroy_process_group()
    if result is None:
        return 0
    print(_table(result))
    print(f"Wrote {files.results}.", file=sys.stderr)
    write_pictures("evaluation_page", "write_evaluation_page", files.results)
    return 0


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """Options of sampling: those given, or those that given samples were sampled with."""
    asked = sampling_options(options)
    found: dict[str, Any] = {}
    for samples in options.samples or ():
        own = _settings_of(samples)
        for name, value in own.items():
            other = asked.get(name, found.get(name, value))
            if other != value:
                raise ValueError(
                    f"{samples} was sampled with `{name}={value}`, not {other}. Leave the option out, and pass "
                    "samples of the same settings."
                )
        found |= own
    return found | asked


def _settings_of(samples: Path) -> dict[str, Any]:
    """Options that a file of samples was sampled with, as far as they are known."""
    from trl_dpo_ext.evaluation.resumable_file import settings_file
    from trl_dpo_ext.evaluation.samples.samples_reader import SamplesReader

    num_samples = SamplesReader(samples).num_samples
    if not settings_file(samples).is_file():  # made by another program
        return {"num_samples": num_samples}
    settings = json.loads(settings_file(samples).read_text(encoding="utf-8"))
    return {name: settings[name] for name in ("num_samples", "temperature", "top_k", "top_p", "max_new_tokens")}


def _openers(options: argparse.Namespace, sampling: dict[str, Any]) -> dict[str | None, Callable[[], tuple[Any, Any]]]:
    """Functions that load each policy, and the reference (`None`), together with the reference."""
    from trl_dpo_ext.evaluation.samples.sampler import Sampler
    from trl_dpo_ext.trainers.checkpoints.saved_state import read_state

    arguments = given(options, MODEL_OPTIONS) | sampling

    def open_with_its_reference() -> tuple[Any, Any]:
        with hub_name_explained(options.policies[0]):
            return Sampler.with_reference(options.policies[0], **arguments)

    def open_reference() -> tuple[Any, Any]:
        if options.reference is None:
            _, reference = open_with_its_reference()
            return reference, reference
        return loaded_reference(), loaded_reference()

    @functools.cache
    def loaded_reference() -> Any:
        # In the precision of the policy, whose folder says how it was trained
        trained = read_state(options.policies[0]) if Path(options.policies[0]).is_dir() else {}
        precision = {name: trained[name] for name in ("dtype", "mixed_precision") if name in trained}
        of_reference = precision | {name: value for name, value in arguments.items() if name != "revision"}
        with hub_name_explained(options.reference):
            return Sampler.from_pretrained(options.reference, **of_reference)

    def open_policy(path: str) -> tuple[Any, Any]:
        if options.reference is None:
            return open_with_its_reference()
        with hub_name_explained(path):
            policy = Sampler.from_pretrained(path, **arguments)
        if policy.processing_class.get_vocab() != loaded_reference().processing_class.get_vocab():
            raise ValueError(
                f"{path} and {options.reference} have different tokenizers, so there is no KL between them. Pass the "
                "model that training started from as --reference."
            )
        return policy, loaded_reference()

    return {None: open_reference, **{path: functools.partial(open_policy, path) for path in options.policies}}


def _table(result: dict[str, Any]) -> str:
    """Means and standard errors, a line for each policy and the reference."""
    from trl_dpo_ext.report.evaluation_results import entries_of

    columns = {
        "reward": "reward",
        "win_over_reference": "win over reference",
        "kl": "KL, nats",
        "finished_share": "finished",
        "mean_length": "length",
    }
    entries = entries_of(result)
    shown = {key: label for key, label in columns.items() if any(key in entry for entry in entries.values())}
    width = max(map(len, entries))
    lines = [" " * width + "".join(f"{label:>22}" for label in shown.values())]
    for name, entry in entries.items():
        cells = [_cell(entry[key], entry[f"{key}_se"]) if key in entry else "" for key in shown]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _cell(mean: float | None, se: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.3f}" if se is None else f"{mean:.3f} +- {se:.3f}"
