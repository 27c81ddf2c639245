"""Sampling killed (SIGKILL) at every third moment and resumed: `sample_kill_case.py MODEL PROMPTS`, a JSON line."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trl_dpo_ext.evaluation import Sampler, open_prompts, sample_file
from trl_dpo_ext.sampling import options


class Moments:
    """Counts the moments before and after calls of functions, and kills the process at one of them."""

    def __init__(self) -> None:
        self.count = 0
        self.kill_at: int | None = None

    def reach(self) -> None:
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def around(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.reach()
            result = real(*args, **kwargs)
            self.reach()
            return result

        setattr(owner, name, wrapped)


def killed(work: Callable[[], Any]) -> bool:
    """Whether a fork of this process is killed in its work."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    try:
        work()
    finally:
        os._exit(0)


def main(model: str, prompts: str) -> None:
    torch.set_num_threads(1)
    options._SAMPLES_PER_PART = 4
    sampler = Sampler.from_pretrained(model, num_samples=2, max_new_tokens=6, seed=7)
    source = open_prompts(prompts, sampler.options)
    moments = Moments()
    for owner, name in ((os, "replace"), (Path, "write_text"), (Path, "rename"), (Sampler, "sample_part")):
        moments.around(owner, name)

    def contents(output: Path) -> tuple[bytes, bytes]:
        sample_file(sampler, source, output)
        return output.read_bytes(), Path(f"{output}.settings.json").read_bytes()

    expected = contents(Path("straight.jsonl"))
    tried, wrong = range(0, moments.count, 3), []
    for moment in tried:
        output = Path(f"{moment}.jsonl")
        moments.count, moments.kill_at = 0, moment
        was_killed = killed(lambda output=output: sample_file(sampler, source, output))
        moments.kill_at = None
        if not was_killed or contents(output) != expected or Path(f"{output}.parts").exists():
            wrong.append(moment)
    sys.stdout.write(json.dumps({"tried": len(tried), "wrong": wrong}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
