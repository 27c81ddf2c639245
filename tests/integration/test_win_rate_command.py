"""`trl-dpo-ext win-rate`: judges with a script on the loopback interface, a real model, functions, rewards, people."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import same
from forked import free_port, start
from scripted_judge import JUDGE_PROMPT, ScriptedJudge, served
from tiny import save_tiny, tiny_llama, tiny_tokenizer

from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation.judging.comparisons import text_of_prompt
from trl_dpo_ext.evaluation.judging.judge_prompts import JUDGE_PROMPTS, load_judge_prompt
from trl_dpo_ext.report import win_rate_page


KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "page" not in request.fixturenames:  # half a second in every run
        monkeypatch.setattr(win_rate_page, "write_win_rate_page", lambda path: ("page", "picture"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Path("judge.txt").write_text(JUDGE_PROMPT)


@pytest.fixture
def page() -> None:
    """The test looks at the page."""


def write_rows(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_completions(num: int, word: str, path: str | None = None, samples: int = 1) -> str:
    rows = [
        {"prompt_id": i, "prompt": f"question {i}", "completion": f"{word} {i} {sample}"}
        for i in range(num)
        for sample in range(samples)
    ]
    return write_rows(path or f"{word}.jsonl", rows)


def words(url: str, *more: str, policy: str = "a.jsonl", output: str = "verdicts.jsonl") -> list[str]:
    return [
        *("win-rate", "--policy", policy, "--baseline", "b.jsonl", "--output", output),
        *("--judge", url, "--judge_model", "scripted", "--judge_prompt", "judge.txt", "--timeout", "30", *more),
    ]


def summary(output: str = "verdicts") -> dict[str, Any]:
    return json.loads(Path(f"{output}.summary.json").read_text())


def lines(output: str = "verdicts") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{output}.jsonl").read_text().splitlines()]


def drawn(*of: str) -> float:
    """A number from 0 to 1 that only depends on the texts."""
    return random.Random("\x1f".join(of)).random()


def of_policy(text: str) -> bool:
    return text.startswith("a")


def prefer(first: bool) -> str:
    return f"One sentence.\nPreferred: {'A' if first else 'B'}"


# Which completion wins


def test_closed_form():
    # The judge knows what it prefers in half of the comparisons, the policy's in 0.8 of them. Else it takes the first
    # position with a probability of 0.7. So the win rate is 0.5 * 0.8 + 0.5 * 0.5, and the first position is preferred
    # in 0.5 * 0.5 + 0.5 * 0.7
    def decide(prompt: str, first: str, second: str) -> str:
        if drawn(prompt, "known") < 0.5:
            return prefer(of_policy(first) == (drawn(prompt, "policy") < 0.8))
        return prefer(drawn(prompt, first, second) < 0.7)

    num = 200
    write_completions(num, "a"), write_completions(num, "b")
    with served(ScriptedJudge(decide)) as judge:
        assert main(words(judge.url)) == 0
    found = summary()
    assert judge.num_requests == 2 * num == found["num_verdicts"] and found["num_items"] == found["num_prompts"] == num
    assert abs(found["win_rate"] - 0.65) < 4 * found["win_rate_se"] < 0.14
    assert abs(found["first_position_rate"] - 0.6) < 4 * found["first_position_rate_se"] < 0.14
    assert found["first_position_rate_low"] > 0.5
    # Flips: 2 * 0.7 * 0.3 of the undecided take the same completion twice, the rest the same position
    assert abs(found["flips"] - num * 0.5 * (1 - 0.42)) < 4 * (num * 0.29 * 0.71) ** 0.5
    assert found["consistent_wins"] + found["consistent_losses"] + found["flips"] == num
    assert found["win_rate_bounds"] == [same(found["win_rate"])] * 2 and found["unparsable"] == found["failed"] == 0


def test_a_judge_of_positions():
    write_completions(200, "a"), write_completions(200, "b")
    with served(ScriptedJudge(lambda *question: prefer(drawn(*question) < 0.7))) as judge:
        assert main(words(judge.url)) == 0
    found = summary()
    assert abs(found["first_position_rate"] - 0.7) < 4 * found["first_position_rate_se"] < 0.14
    assert abs(found["win_rate"] - 0.5) < 4 * found["win_rate_se"] < 0.14


def test_one_order_at_random():
    write_completions(200, "a"), write_completions(200, "b")
    with served(ScriptedJudge(lambda prompt, first, second: prefer(True))) as judge:
        assert main(words(judge.url, "--order", "random", "--seed", "3")) == 0
    found = summary()
    assert judge.num_requests == 200 and found["first_position_rate"] == 1
    assert abs(found["win_rate"] - 0.5) < 4 * (0.25 / 200) ** 0.5  # a coin for each comparison


def test_what_the_judge_is_asked():
    write_completions(1, "a"), write_completions(1, "b")
    with served(ScriptedJudge(lambda *question: "Preferred: tie")) as judge:
        given = words(judge.url, "--judge_parameters", '{"max_tokens": null, "max_completion_tokens": 99, "seed": 5}')
        assert main(given) == 0
    asked = [body["messages"] for body in judge.bodies]
    assert sorted(asked, key=str) == [
        [{"role": "user", "content": f"question 0\x1f{first} 0 0\x1f{second} 0 0"}]
        for first, second in (("a", "b"), ("b", "a"))
    ]
    parameters = {"temperature": 0, "max_completion_tokens": 99, "seed": 5}
    for body in judge.bodies:
        assert {name: body[name] for name in body if name not in ("messages", "model", "stream")} == parameters
    row = lines()[0]
    assert row["parameters"] == parameters and row["model"] == "scripted" and row["rater"] == "scripted (judge)"
    assert row["answer"] == "Preferred: tie" and row["verdict"] == "tie"
    assert row["judge_prompt_hash"] == load_judge_prompt("judge.txt").hash
    assert summary()["ties"] == 1 and summary()["win_rate"] == 0.5


# Faults


FAULTS = ("429", "500", "hang", "html", "no choices", "cut")


def test_faults_are_asked_again_and_answers_never(capfd):
    # Every third question has a fault, of each kind in turn, and 10 % of the answers are garbage
    def faults(prompt: str, first: str, second: str) -> list[str]:
        number = 2 * int(prompt.split()[1]) + of_policy(first)
        return [FAULTS[number // 3 % len(FAULTS)]] if number % 3 == 0 else []

    def is_garbage(*question: str) -> bool:
        return drawn(*question, "garbage") < 0.1

    def decide(prompt: str, first: str, second: str) -> str:
        if is_garbage(prompt, first, second):
            return ["I prefer A.", "", "Preferred: C", "Preferred: A\nor rather B"][int(prompt.split()[1]) % 4]
        return prefer(of_policy(first))

    num = 54
    write_completions(num, "a"), write_completions(num, "b")
    with served(ScriptedJudge(decide, faults)) as judge:
        assert main(words(judge.url, "--timeout", "1.5")) == 0  # a hang takes longer
    injected = sum(judge.faults_given.values())
    assert judge.faults_given == dict.fromkeys(FAULTS, injected // 6) and injected == 36
    assert judge.num_requests == 2 * num + injected
    assert set(judge.questions.values()) == {1} and len(judge.questions) == 2 * num
    assert judge.waits and min(judge.waits) >= 0.2  # as `Retry-After` says
    found = summary()
    garbage = sum(is_garbage(*question) for question in judge.questions)
    assert 0 < garbage == found["unparsable"] and found["failed"] == 0 and found["win_rate"] == 1
    low, high = found["win_rate_bounds"]
    assert (low, high) == (same(1 - garbage / (2 * num)), 1)


def test_what_has_no_answer_is_asked_again_by_the_next_run():
    # The first two attempts of every fifth comparison fail, in one order
    def faults(prompt: str, first: str, second: str) -> list[str]:
        return ["500", "500"] if int(prompt.split()[1]) % 5 == 0 and of_policy(first) else []

    write_completions(40, "a"), write_completions(40, "b")
    with served(ScriptedJudge(lambda prompt, first, second: prefer(of_policy(first)), faults)) as judge:
        given = words(judge.url, "--max_retries", "0", "--concurrency", "2")
        assert main(given) == 0
        first = summary()
        assert (first["failed"], first["incomplete"], first["consistent_wins"]) == (8, 8, 32)
        assert first["win_rate"] == 1 and first["win_rate_bounds"] == [same(1 - 8 / 80), 1]
        assert main(given) == 0 and summary()["failed"] == 8
        assert main(given) == 0
    assert summary()["failed"] == 0 and summary()["consistent_wins"] == 40
    assert judge.num_requests == 80 + 16 and set(judge.questions.values()) == {1}


def test_one_question_that_is_refused():
    faults = {"question 1": ["refuse"]}
    write_completions(3, "a"), write_completions(3, "b")
    with served(ScriptedJudge(lambda *question: prefer(True), lambda prompt, *_: faults.get(prompt, []))) as judge:
        assert main(words(judge.url)) == 0
    assert judge.num_requests == 6  # the same request would be refused again
    assert [row["error"] for row in lines() if row["error"]] == ["status 400: content filter"] * 2


def test_killed_at_ten_moments_and_resumed():
    num = 12
    write_completions(num, "a"), write_completions(num, "b")

    def decide(prompt: str, first: str, second: str) -> str:
        return (
            "no idea" if drawn(prompt, first, second) < 0.1 else prefer(drawn(prompt, first) < drawn(prompt, second))
        )

    with served(ScriptedJudge(decide)) as judge:
        assert main(words(judge.url, output="straight.jsonl")) == 0
    straight = summary("straight")
    for moment in range(1, 21, 2):
        output, running = f"{moment}.jsonl", []

        def kill(number: int, moment: int = moment, running: list[Any] = running) -> None:
            if number == moment:
                while not running:
                    time.sleep(0.001)
                os.kill(running[0].process.pid, signal.SIGKILL)

        with served(ScriptedJudge(decide, before_answer=kill)) as judge:
            given = words(judge.url, "--concurrency", "4", output=output)
            running.append(start(["-m", "trl_dpo_ext.cli", *given], Path(f"{moment}.log")))
            assert running[0].wait(120) == -9
            answered = Path(output).read_bytes().count(b"\n") if Path(output).exists() else 0
            assert main(given) == 0
        # Asked twice at most what was on its way
        assert 2 * num <= judge.num_requests <= 2 * num + 4 and answered >= moment - 1 - 4
        found = summary(str(moment))
        assert found | {"verdicts": "straight.jsonl"} == straight


def test_a_line_that_was_cut():
    write_completions(5, "a"), write_completions(5, "b")
    with served(ScriptedJudge(lambda *question: prefer(True))) as judge:
        assert main(words(judge.url)) == 0
        whole = summary()
        with Path("verdicts.jsonl").open("rb+") as file:
            file.truncate(file.seek(0, 2) - 9)
        assert main(words(judge.url)) == 0
    assert judge.num_requests == 11 and summary() == whole and len(lines()) == 10


def test_a_cap_stops_in_time_and_resumes(capsys):
    write_completions(20, "a"), write_completions(20, "b")
    faults = {"question 3": ["500"]}
    with served(ScriptedJudge(lambda *question: prefer(True), lambda prompt, *_: faults.get(prompt, []))) as judge:
        assert main(words(judge.url, "--max_requests", "15")) == 1
        assert "15 requests were sent" in (message := capsys.readouterr().err) and "verdicts so far" in message
        assert judge.num_requests == 15 and not Path("verdicts.summary.json").exists()
        assert len(lines()) == sum(judge.questions.values())
        assert main(words(judge.url)) == 0
        assert judge.num_requests == 42 and set(judge.questions.values()) == {1}
        assert main(words(judge.url, "--max_requests", "1")) == 0  # nothing is left to ask
        assert judge.num_requests == 42


def test_interrupted():
    write_completions(40, "a"), write_completions(40, "b")
    running: list[Any] = []

    def interrupt(number: int) -> None:
        if number == 20:
            while not running:
                time.sleep(0.001)
            os.kill(running[0].process.pid, signal.SIGINT)
        time.sleep(0.05)

    with served(ScriptedJudge(lambda *question: prefer(True), before_answer=interrupt)) as judge:
        given = words(judge.url, "--concurrency", "4")
        Path("interruptible.py").write_text(_INTERRUPTIBLE)
        running.append(start(["interruptible.py", *given], Path("log")))
        assert running[0].wait(120) == 130
        assert "interrupted. verdicts.jsonl has the verdicts so far" in running[0].output
        assert len(lines()) == sum(judge.questions.values()) < 80  # also what was on its way
        assert main(given) == 0
    assert judge.num_requests == 80 and set(judge.questions.values()) == {1}


# A process in the background of a shell ignores SIGINT, and so do its children
_INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from trl_dpo_ext.cli import main
sys.exit(main(sys.argv[1:]))
"""


# Keys, addresses and other mistakes


def test_the_key_is_in_no_file_or_message(monkeypatch, capfd):
    monkeypatch.setenv("MY_KEY", KEY)
    write_completions(12, "a"), write_completions(12, "b")

    def echo(*question: str) -> str:  # a server that repeats the key
        return f"Your key is {KEY}.\nPreferred: A"

    with served(ScriptedJudge(echo, lambda prompt, *_: ["html"] if prompt.endswith("1") else [])) as judge:
        assert main(words(judge.url, "--api_key_env", "MY_KEY")) == 0
        assert judge.keys == {f"Bearer {KEY}"}
    printed = capfd.readouterr()
    contents = [path.read_bytes() for path in Path().iterdir() if path.is_file()]
    assert all(KEY not in text for text in (printed.out, printed.err)) and all(KEY.encode() not in c for c in contents)
    assert lines()[0]["answer"] == "Your key is ***.\nPreferred: A"


def test_the_token_of_the_hub_is_not_sent(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    write_completions(1, "a"), write_completions(1, "b")
    with served(ScriptedJudge(lambda *question: prefer(True))) as judge:
        assert main(words(judge.url)) == 0
    assert judge.keys == {"Bearer none"}


class _Refusing(ScriptedJudge):
    """Gives every request the same status."""

    def __init__(self, status: int, message: str):
        super().__init__(lambda *question: "")
        self.status, self.message = status, message

    def respond(self, request: Any) -> None:
        from scripted_judge import _send

        request.rfile.read(int(request.headers["Content-Length"]))
        self.num_requests += 1
        _send(request, self.status, {"error": {"message": self.message}})


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "status 401: Incorrect API key provided: ***. The key is missing or wrong."),
        (404, "There is no such model, or the address is not that of an API."),
    ],
)
def test_a_refusal_of_all_requests(status, said, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write_completions(50, "a"), write_completions(50, "b")
    with served(_Refusing(status, f"Incorrect API key provided: {KEY}.")) as judge:
        assert main(words(judge.url, "--concurrency", "3")) == 2
    assert said in (message := capsys.readouterr().err) and judge.url in message and judge.num_requests <= 3
    assert not Path("verdicts.summary.json").exists()


def test_a_judge_that_always_fails(capsys):
    write_completions(50, "a"), write_completions(50, "b")
    with served(_Refusing(503, "down for maintenance")) as judge:
        assert main(words(judge.url, "--max_retries", "0", "--concurrency", "2")) == 2
    message = capsys.readouterr().err
    assert "gave no answer 10 times in a row. The last error: status 503: down for maintenance" in message
    assert 10 <= judge.num_requests <= 12


def test_nobody_is_there(capsys):
    write_completions(5, "a"), write_completions(5, "b")
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert main(words(url)) == 2
    assert f"{url} cannot be reached" in (message := capsys.readouterr().err) and "Is the address right?" in message


MISTAKES = {
    ("--judge", "localhost:8000"): "The address of the judge 'localhost:8000' is no URL.",
    ("--api_key_env", "MISSING_KEY"): "The environment variable MISSING_KEY with the key is not set (--api_key_env).",
    ("--judge_prompt", "sumary"): "The judge prompt sumary is neither one of dialogue, news, summary, summary-concise",
    ("--judge_parameters", "{temperature: 1}"): "is no JSON",
    ("--judge_function", "math:fsum"): "One judge is needed",
    ("--baseline", "other.jsonl"): "No prompt is in both files, compared by `prompt_id`",
    ("--baseline", "shifted.jsonl"): "differ, although both have the `prompt_id` 0",
    ("--baseline", "three.jsonl", "--policy", "two.jsonl"): "Pass equal numbers, or one sample of each prompt.",
    ("--baseline", "response.jsonl"): "There is no `completion` in row 0 (line 1)",
    ("--output", "verdicts.csv"): "verdicts.csv must end in .jsonl.",
    ("--judge_prompt", "short.txt"): "The judge prompt short has {second} 0 times.",
}  # fmt: skip


@pytest.mark.parametrize("given", MISTAKES)
def test_mistakes(given, capsys):
    write_completions(3, "a"), write_completions(3, "b")
    write_completions(3, "x", "two.jsonl", samples=2), write_completions(3, "x", "three.jsonl", samples=3)
    write_rows("other.jsonl", [{"prompt_id": 7, "prompt": "question 7", "completion": "b"}])
    write_rows("shifted.jsonl", [{"prompt_id": 0, "prompt": "question 1", "completion": "b"}])
    write_rows("response.jsonl", [{"prompt": "question 1", "response": "b"}])
    Path("short.txt").write_text("{prompt} {first}")
    try:
        status = main([*words("http://127.0.0.1:9/v1"), *given])
    except SystemExit as stopped:
        status = stopped.code
    message = capsys.readouterr().err
    assert status == 2 and MISTAKES[given] in message and "Traceback" not in message


def test_other_conditions_under_the_same_name(capsys):
    write_completions(2, "a"), write_completions(2, "b")
    with served(ScriptedJudge(lambda *question: prefer(True))) as judge:
        assert main(words(judge.url)) == 0
        Path("judge.txt").write_text(JUDGE_PROMPT + " ")
        assert main(words(judge.url)) == 2
        message = capsys.readouterr().err
        assert "`judge_prompt_hash` was" in message and "give this rater another name with --rater" in message
        assert main(words(judge.url, "--rater", "second")) == 0
    assert judge.num_requests == 8 and Counter(row["rater"] for row in lines()) == {"scripted (judge)": 4, "second": 4}


def test_two_runs_on_one_output(capsys):
    write_completions(2, "a"), write_completions(2, "b")
    second: list[int] = []

    def start_another(number: int) -> None:
        if number == 1:
            second.append(subprocess.run([sys.executable, "-c", _LOCK], check=False).returncode)

    with served(ScriptedJudge(lambda *question: prefer(True), before_answer=start_another)) as judge:
        assert main(words(judge.url)) == 0
    assert second == [0]


_LOCK = """
import fcntl, os, sys
handle = os.open("verdicts.jsonl.parts/lock", os.O_RDWR)
try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(0)
sys.exit(1)
"""


def test_dry_run(capsys):
    write_completions(10, "a"), write_completions(10, "b")
    with served(ScriptedJudge(lambda *question: prefer(True))) as judge:
        assert main(words(judge.url, "--max_requests", "5")) == 1
        capsys.readouterr()
        assert main(words(judge.url, "--dry_run", "--input_price", "10", "--output_price", "1000")) == 0
    printed = capsys.readouterr().out
    assert judge.num_requests == 5
    assert "requests         15 without an answer, of scripted (judge)" in printed
    assert "tokens of output at most 15,360" in printed and "at most 15.36 with the output" in printed
    assert "question 2\x1fb 2 0\x1fa 2 0" in printed or "question" in printed.splitlines()[-1]


# A real model


@pytest.mark.slow
def test_a_real_model(tmp_path):
    """A Llama that always answers `Preferred: A`, behind `transformers serve`."""
    pytest.importorskip("fastapi"), pytest.importorskip("uvicorn")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Preferred: A"])
    model = tiny_llama()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    [newline] = tokenizer.encode("\n", add_special_tokens=False)
    answer, eos = len(tokenizer) - 1, tokenizer.eos_token_id
    with torch.no_grad():
        for layer in model.model.layers:  # the next token depends on the last one only
            layer.self_attn.o_proj.weight.zero_(), layer.mlp.down_proj.weight.zero_()
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embedding.zero_(), head.zero_()
        embedding[:, 0], embedding[newline, 1], embedding[answer, 2] = 1e-3, 1.0, 1.0
        head[answer, 1], head[eos, 2] = 1.0, 1.0
    folder = save_tiny(model, tokenizer, tmp_path / "chat")
    port = free_port()
    serve = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    Path("serve.py").write_text(serve)
    server = start(["serve.py", "serve", folder, "--port", port, "--device", "cpu"], Path("serve.log"))
    try:
        write_completions(6, "a"), write_completions(6, "b")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if server.log.exists() and "Application startup complete" in server.output:
                break
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}/v1"
        more = ("--timeout", "60", "--judge_model", folder, "--judge_prompt", "dialogue", "--rater", "llama")
        assert main([*words(url), *more, "--judge_parameters", '{"max_tokens": 8}']) == 0, server.output
    finally:
        server.process.kill()
    found = summary()
    assert found["flips"] == found["num_items"] == 6 and found["first_position_rate"] == 1
    assert found["win_rate"] == 0.5 and found["unparsable"] == found["failed"] == 0
    assert {row["answer"] for row in lines()} == {"Preferred: A"}


# Other judges


def test_functions_and_rewards(capsys):
    write_completions(8, "a"), write_completions(8, "b")
    Path("own.py").write_text(
        "def later(prompt, first, second):\n"
        "    return 'A' if first > second else 'B'\n"
        "def last_digit(prompts, completions):\n"
        "    return [int(text.split()[1]) % 2 * text.startswith('a') for text in completions]\n"
    )
    given = ["win-rate", "--policy", "a.jsonl", "--baseline", "b.jsonl", "--output", "v.jsonl"]
    assert main([*given, "--judge_function", "own.py:later"]) == 0
    found = summary("v")
    assert found["win_rate"] == 0 and found["consistent_losses"] == 8 and found["first_position_rate"] == 0.5
    assert main([*given, "--reward_function", "own.py:last_digit"]) == 0
    found = summary("v")
    assert (found["consistent_wins"], found["ties"], found["win_rate"]) == (4, 4, 0.75)
    assert found["first_position_rate"] is None and found["raters"] == ["last_digit"]
    # Both are raters of one file
    capsys.readouterr()
    assert main(["agreement", "v.jsonl", "--output", "table.json"]) == 0
    table = json.loads(Path("table.json").read_text())
    assert table["num_items"] == 8 and set(table["raters"]) == {"later", "last_digit"}


def test_a_judge_function_with_an_error():
    write_completions(3, "a"), write_completions(3, "b")
    Path("own.py").write_text("def broken(prompt, first, second):\n    return 1 / int(prompt[-1])\n")
    given = ["win-rate", "--policy", "a.jsonl", "--baseline", "b.jsonl", "--output", "v.jsonl"]
    assert main([*given, "--judge_function", "own.py:broken"]) == 0
    errors = {row["error"] for row in lines("v")}
    assert errors == {
        "ZeroDivisionError: division by zero", "the function returned 1.0 and no text",
        "the function returned 0.5 and no text",
    }  # fmt: skip
    assert summary("v")["win_rate"] is None and summary("v")["win_rate_bounds"] == [0, 1]


def test_people(capsys):
    write_rows("a.jsonl", [{"prompt": f"q{i}", "completion": f"=a{i}"} for i in range(6)])
    write_rows("b.jsonl", [{"prompt": f"q{i}", "completion": f"b{i}"} for i in range(6)])
    given = ["win-rate", "--policy", "a.jsonl", "--baseline", "b.jsonl", "--output", "v.jsonl"]
    assert main([*given, "--write_sheet", "sheet.csv"]) == 0
    with open("sheet.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert main([*given, "--write_sheet", "sheet.csv"]) == 2  # it may be filled in
    shown = {(row["A"], row["B"]) for row in rows}
    assert all((f"'=a{i}", f"b{i}") in shown or (f"b{i}", f"'=a{i}") in shown for i in range(6))
    assert {row["order"] for row in rows} == {"ab", "ba"}
    # Ann prefers the policy's but in one tie; Bob the first ones, and leaves two out
    for row in rows:
        ours_first = row["A"].startswith("'=a")
        row |= {"rater": "ann", "preferred": "tie" if "q0" in row["prompt"] else "A" if ours_first else "b"}
    write_sheet("ann.csv", rows)
    write_sheet("bob.csv", [row | {"rater": "", "preferred": "A" if i < 4 else ""} for i, row in enumerate(rows)])
    assert main([*given, "--human", "ann.csv", "bob.csv"]) == 0
    assert "bob.csv: 4 ratings, 4 of them new; 2 rows are empty." in capsys.readouterr().err
    found = summary("v")
    assert found["raters"] == ["ann", "bob"] and found["kind"] == "human"
    by_prompt = []
    for i, row in enumerate(rows):
        scores = [0.5 if row["preferred"] == "tie" else 1.0]
        by_prompt.append(scores + ([float(row["order"] == "ab")] if i < 4 else []))
    assert found["win_rate"] == same(sum(sum(own) / len(own) for own in by_prompt) / 6)
    # A corrected rating replaces the old one
    write_sheet("ann.csv", [row | {"preferred": "tie"} for row in rows])
    assert main([*given, "--human", "ann.csv"]) == 0
    assert summary("v")["win_rate"] == 0.5 and summary("v")["ties"] == 6
    capsys.readouterr()
    assert main(["agreement", "v.jsonl", "--output", "table.json"]) == 0
    table = json.loads(Path("table.json").read_text())
    assert table["raters"]["ann"]["tie"] == 6 and table["human_human"]["ties_kept"]["agreement"] == 0


def write_sheet(path: str, rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


# Policies and temperatures


def test_a_grid_of_temperatures(capsys, page):
    num = 40
    write_completions(num, "b")
    Path("own.py").write_text(
        "def scored(prompts, completions):\n"
        "    return [float(text.split()[1]) if text.startswith('a') else 20.0 for text in completions]\n"
    )
    for temperature, shift in ((0.0, 10), (1.0, 0)):
        for name, more in (("dpo", 5), ("sft", 0)):
            path = f"{name}_{temperature:g}.jsonl"
            rows = [
                {"prompt_id": i, "prompt": f"question {i}", "completion": f"a {i + shift + more}"} for i in range(num)
            ]
            write_rows(path, rows)
            Path(f"{path}.settings.json").write_text(json.dumps({"temperature": temperature}))
    files = ["DPO=dpo_0.jsonl", "DPO=dpo_1.jsonl", "SFT=sft_0.jsonl", "SFT=sft_1.jsonl"]
    given = ["win-rate", "--policy", *files, "--baseline", "b.jsonl", "--output", "v.jsonl"]
    assert main([*given, "--reward_function", "own.py:scored"]) == 0
    found = summary("v")
    # Won: i + shift > 20; tied: equal
    expected = {("DPO", 0): 34.5, ("DPO", 1): 24.5, ("SFT", 0): 29.5, ("SFT", 1): 19.5}
    rates = {(entry["policy"], entry["temperature"]): entry["win_rate"] for entry in found["policies"]}
    assert rates == {key: same(wins / num) for key, wins in expected.items()}
    differences = {row["temperature"]: row for row in found["differences"]}
    assert set(differences) == {0, 1} and differences[0]["win_rate"] == same(5 / num) == differences[1]["win_rate"]
    # By hand: four prompts are won by the first only (1), two tie in one of them (1/2)
    values = [1.0] * 4 + [0.5] * 2 + [0.0] * (num - 6)
    mean = sum(values) / num
    se = (sum((value - mean) ** 2 for value in values) / (num - 1) / num) ** 0.5
    assert differences[0]["win_rate_se"] == same(se)
    page = Path("v.html").read_text()
    assert "temperature" in page and "DPO − SFT, T = 0" in page and Path("v.png").stat().st_size > 10_000
    assert "DPO - SFT at T = 0: 0.125" in capsys.readouterr().out


def test_prompts_that_only_one_file_has(capsys):
    write_completions(5, "a"), write_completions(8, "b")
    Path("own.py").write_text("def f(prompt, first, second):\n    return 'tie'\n")
    given = ["win-rate", "--policy", "a.jsonl", "--baseline", "b.jsonl", "--output", "v.jsonl"]
    assert main([*given, "--judge_function", "own.py:f"]) == 0
    assert "b.jsonl: 3 prompts are not in a.jsonl and are left out." in capsys.readouterr().err
    assert (summary("v")["num_items"], summary("v")["prompts_only_in_baseline"]) == (5, 3)


def test_the_judge_prompts():
    for name, text in JUDGE_PROMPTS.items():
        question = load_judge_prompt(name).question("What is 2 + 2?", "Four {second}", "Five")
        assert question.count("Four {second}") == question.count("Five") == question.count("What is 2 + 2?") == 1
        assert question.rstrip().endswith("Preferred: A\nPreferred: B\nPreferred: tie") and "{prompt}" in text
    assert len({load_judge_prompt(name).hash for name in JUDGE_PROMPTS}) == 4
    hh = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bye\n\nAssistant:"
    assert text_of_prompt(hh) == "Human: hi\n\nAssistant: hello\n\nHuman: bye"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    assert text_of_prompt(messages) == "System: Be brief.\n\nUser: hi"
