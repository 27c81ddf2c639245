"""Asking a judge about many comparisons, several at a time, so that an interruption loses no answer."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict

import xxhash
from transformers.utils import logging

from trl_dpo_ext.evaluation.judging.comparisons import Comparison
from trl_dpo_ext.evaluation.judging.judge_prompts import preference_of
from trl_dpo_ext.evaluation.judging.judgements import FAILED, UNPARSABLE
from trl_dpo_ext.evaluation.judging.judges import Answer, AskingStopped, Judge
from trl_dpo_ext.evaluation.judging.verdicts import ORDERS, RaterIdentity, Verdict, VerdictFile, verdict_of


__all__ = ["ask_judge", "new_verdict", "orders_of", "unanswered"]

# A judge that gives no answer so many times in a row gives none to the others, either
_MOST_FAILED_IN_A_ROW = 10


def orders_of(comparison: Comparison, order: str, seed: int) -> tuple[str, ...]:
    """
    Returns the orders in which a comparison is shown.

    Args:
        comparison ([`Comparison`]):
            Comparison.
        order (`str`):
            `"both"`, or `"random"` for one of them by the seed and the comparison.
        seed (`int`):
            Seed.
    """
    if order == "both":
        return ORDERS
    return (ORDERS[xxhash.xxh3_64_intdigest(f"{seed} {comparison.item}".encode()) % 2],)


def unanswered(
    comparisons: Iterable[Comparison], file: VerdictFile, rater: str, *, order: str = "both", seed: int = 0
) -> list[tuple[Comparison, str]]:
    """
    Returns what a rater has to be asked: comparisons and orders without an answer, each once.

    Args:
        comparisons (`Iterable[Comparison]`):
            Comparisons.
        file ([`VerdictFile`]):
            Verdicts that are there.
        rater (`str`):
            Name of the rater.
        order (`str`, *optional*, defaults to `"both"`):
            `"both"` or `"random"`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random order.
    """
    questions = {
        (comparison.item, shown): (comparison, shown)
        for comparison in comparisons
        for shown in orders_of(comparison, order, seed)
        if not file.has(comparison, rater, shown)
    }
    return list(questions.values())


def ask_judge(
    judge: Judge,
    comparisons: Sequence[Comparison],
    file: VerdictFile,
    *,
    order: str = "both",
    seed: int = 0,
    concurrency: int = 8,
) -> int:
    """
    Asks a judge for the verdicts that are missing, and writes each when it is there.

    Args:
        judge ([`Judge`]):
            Judge.
        comparisons (`Sequence[Comparison]`):
            Comparisons.
        file ([`VerdictFile`]):
            File, opened.
        order (`str`, *optional*, defaults to `"both"`):
            `"both"` shows each comparison in both orders. `"random"` shows it in one order, by the seed.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random order.
        concurrency (`int`, *optional*, defaults to `8`):
            Number of questions at a time.

    Returns:
        `int`: Number of new verdicts.

    Raises:
        ValueError: If verdicts of the rater under other conditions are in the file.
        AskingStopped: If the judge cannot be asked, or gives no answer again and again. Verdicts that are there are
            written.
    """
    identity = judge.identity
    file.check_rater(identity)
    questions = unanswered(comparisons, file, identity.rater, order=order, seed=seed)
    counts = {UNPARSABLE: 0, FAILED: 0}
    title = f"Asking {identity.rater}"
    bar = logging.tqdm(total=len(questions), unit="verdict", desc=title, disable=not questions)
    with bar as progress, ThreadPoolExecutor(concurrency) as pool:
        for (comparison, shown), answer in _answers(pool, judge, questions, concurrency):
            verdict = new_verdict(comparison, identity, shown, answer)
            file.append(verdict)
            progress.update()
            if verdict.verdict in counts:
                counts[verdict.verdict] += 1
                progress.set_postfix(counts)
    return len(questions)


def _answers(
    pool: ThreadPoolExecutor, judge: Judge, questions: Iterable[tuple[Comparison, str]], concurrency: int
) -> Iterator[tuple[tuple[Comparison, str], Answer]]:
    """
    Yields the questions with their answers, as they come.

    Answers that are on their way when a question raises an error, or at Ctrl-C, are yielded before it is raised.
    """
    running: dict[Future[Answer], tuple[Comparison, str]] = {}
    waiting = iter(questions)
    problem: BaseException | None = None
    failed_in_a_row = 0
    while True:
        try:
            while problem is None and len(running) < concurrency and (question := next(waiting, None)) is not None:
                running[pool.submit(judge.ask, *question)] = question
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
        except KeyboardInterrupt as error:
            if problem is not None:  # the second time
                raise
            judge.stop()
            problem = error
            continue
        for future in done:
            question = running.pop(future)
            found = future.exception()
            if found is None:
                answer = future.result()
                yield question, answer
                failed_in_a_row = failed_in_a_row + 1 if answer.text is None else 0
                if failed_in_a_row >= _MOST_FAILED_IN_A_ROW:
                    found = AskingStopped(
                        f"{judge.identity.rater} gave no answer {failed_in_a_row} times in a row. The last error: "
                        f"{answer.error}"
                    )
            if found is not None and problem is None:
                judge.stop()
                problem = found
    if problem is not None:
        raise problem


def new_verdict(comparison: Comparison, identity: RaterIdentity, order: str | None, answer: Answer) -> Verdict:
    """Returns the verdict of an answer."""
    if answer.text is None:
        verdict = FAILED
    else:
        verdict = verdict_of(preference_of(answer.text), order)
    return Verdict(
        item=comparison.item,
        verdict=verdict,
        order=order,
        prompt_id=comparison.prompt_id,
        prompt=comparison.prompt,
        prompt_hash=comparison.prompt_hash,
        a=comparison.a,
        b=comparison.b,
        answer=answer.text,
        error=answer.error,
        **asdict(identity),
    )
