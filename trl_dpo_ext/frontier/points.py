"""Evaluation of a run every so many updates, and its cost."""

import json
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from trl_dpo_ext.evaluation.json_results import as_json
from trl_dpo_ext.evaluation.policies.policy_evaluation import PolicyEvaluation
from trl_dpo_ext.evaluation.policies.policy_evaluator import PolicyEvaluator
from trl_dpo_ext.evaluation.rewards.reward import Reward
from trl_dpo_ext.frontier.config import Run
from trl_dpo_ext.frontier.table import Point
from trl_dpo_ext.whole_file import write_text


__all__ = ["CountedReward", "RunPoints", "new_words", "point_of", "words_of"]


class CountedReward:
    """
    A reward that counts the completions that it is called with.

    Args:
        reward (`Reward`):
            Reward.
    """

    def __init__(self, reward: Reward):
        self.reward = reward
        self.num_calls = 0
        self.__name__ = getattr(reward, "__name__", type(reward).__name__)

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> Any:
        """Returns the rewards."""
        self.num_calls += len(completions)
        return self.reward(prompts, completions)


def words_of(texts: Collection[str]) -> frozenset[str]:
    """Returns the words of texts, in lower case."""
    return frozenset(word for text in texts for word in re.findall(r"\w+", text.lower()))


def new_words(completions: Sequence[Sequence[str]], known: frozenset[str]) -> float:
    """Returns the share of the words of completions that are not known."""
    words = [word for own in completions for text in own for word in re.findall(r"\w+", text.lower())]
    return sum(word not in known for word in words) / len(words) if words else 0.0


def point_of(
    evaluation: PolicyEvaluation, known: frozenset[str], *, method: str, knob: str, seed: int, update: int, **cost: Any
) -> Point:
    """Returns the point of an evaluation."""
    found = evaluation.summary()
    names = ("reward", "reward_se", "kl", "kl_se", "kl_k1", "finished_share", "mean_length")
    return Point(
        method=method,
        knob=knob,
        seed=seed,
        update=update,
        new_words=new_words(evaluation.completions, known),
        **{name: found[name] for name in names},
        **cost,
    )


class RunPoints(TrainerCallback):
    """
    Evaluates the policy every so many updates and at the end, and writes the points of the run to a file.

    Args:
        run ([`Run`]):
            Run.
        path (`Path`):
            JSON Lines file. Points of an interrupted run up to its checkpoint are kept.
        evaluator ([`PolicyEvaluator`]):
            Evaluator with the true reward.
        prompts (`Sequence`):
            Prompts of the evaluation.
        known (`frozenset[str]`):
            Words that are not new.
        every (`int`):
            Number of updates between evaluations.
        cost (`dict`):
            `samples_drawn` and `reward_calls` before the run.
        drawn (`Callable`):
            Returns the same of this process since the run was started or resumed.
    """

    def __init__(
        self,
        run: Run,
        path: Path,
        evaluator: PolicyEvaluator,
        prompts: Sequence[Any],
        known: frozenset[str],
        every: int,
        cost: dict[str, int],
        drawn: Callable[[], dict[str, int]],
    ):
        self.run, self.path = run, path
        self._evaluator, self._prompts, self._known, self._every = evaluator, prompts, known, every
        self._cost, self._drawn = cost, drawn
        self._points: list[Point] = []
        self._before: Point | None = None
        self._seconds = 0.0
        self._started = 0.0
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reads the points up to the checkpoint."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        points = [Point.of(json.loads(line)) for line in lines]
        self._points = [point for point in points if point.update <= state.global_step]
        self._before = self._points[-1] if self._points else None
        title = f"{self.run.of.label} {self.run.setting}".strip()
        self._bar = logging.tqdm(total=state.max_steps, initial=state.global_step, desc=title, unit="update")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Stops the clock, and evaluates."""
        self._seconds += time.perf_counter() - self._started
        self._bar.update()
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._evaluate(model, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the progress bar."""
        self._bar.close()

    def _evaluate(self, model: Any, update: int) -> None:
        self._evaluator.reference.to(model.device)
        evaluation = self._evaluator.evaluate(model, self._prompts)
        before = self._before
        drawn = self._drawn()
        cost = {name: drawn[name] + (getattr(before, name) if before else value) for name, value in self._cost.items()}
        point = point_of(
            evaluation,
            self._known,
            method=self.run.of.label,
            knob=self.run.setting,
            seed=self.run.seed,
            update=update,
            wall_s=self._seconds + (before.wall_s if before else 0.0),
            **cost,
        )
        self._points.append(point)
        write_text(self.path, "".join(json.dumps(as_json(asdict(one))) + "\n" for one in self._points))
        self._bar.set_postfix(reward=f"{point.reward:.3f}", KL=f"{point.kl:.2f}")
