"""`trl-dpo-ext sample`: the sampler's samples in files, resumed after a kill, by any number of processes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from closeness import same
from datasets import Dataset
from peft import get_peft_model
from tiny import lora_config, preference_rows, save_tiny, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_dpo_ext import ImplicitRewardModel
from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation import Sampler, open_prompts, sample_file
from trl_dpo_ext.sampling import options as sampling_options


pytestmark = pytest.mark.usefixtures("float64")
OPTIONS = {"num_samples": 2, "max_new_tokens": 6, "seed": 7}
WORDS = [str(word) for name, value in OPTIONS.items() for word in (f"--{name}", value)]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two prompts."""
    monkeypatch.setattr(sampling_options, "_SAMPLES_PER_PART", 4)


def write_prompts(n: int, path: str = "prompts.jsonl", kind: str = "plain", **columns: Any) -> list[Any]:
    rows = [{"prompt": row["prompt"]} | columns for row in preference_rows(n, kind)]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [row["prompt"] for row in rows]


def read_samples(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def sample(model: str, *words: str, prompts: str = "prompts.jsonl", output: str = "out.jsonl") -> int:
    return main(["sample", model, prompts, "--output", output, *WORDS, *words])


# Values


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_files_of_all_kinds(llama_folder, kind):
    prompts = write_prompts(5, kind=kind)
    Dataset.from_list([{"prompt": prompt} for prompt in prompts]).to_parquet("prompts.parquet")
    Dataset.from_list([{"prompt": prompt} for prompt in prompts]).save_to_disk("prompts")
    rows = Sampler.from_pretrained(llama_folder, **OPTIONS).sample(prompts)
    expected = [asdict(one) for row in rows for one in row]
    assert len({one["completion"] for one in expected}) == 10
    assert [(one["prompt_id"], one["sample"]) for one in expected] == [(i, j) for i in range(5) for j in range(2)]
    for source in ("prompts.jsonl", "prompts.parquet", "prompts"):
        assert sample(llama_folder, "--overwrite", prompts=source) == 0
        assert read_samples("out.jsonl") == expected
    assert sorted(path.name for path in Path().glob("out*")) == ["out.jsonl", "out.jsonl.settings.json"]
    settings = json.loads(Path("out.jsonl.settings.json").read_text())
    assert settings["num_samples"] == 2 and settings["top_k"] == 0 and settings["temperature"] == 1.0


def test_an_adapter(llama_folder):
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama_folder), lora_config(init_lora_weights=False))
    model.save_pretrained("adapter")
    tiny_tokenizer().save_pretrained("adapter")
    prompts = write_prompts(3)
    assert sample("adapter") == 0
    model.eval()
    for row in read_samples("out.jsonl"):
        ids = tiny_tokenizer()(prompts[row["prompt_id"]])["input_ids"]
        with torch.no_grad():
            logps = model(torch.tensor([ids + row["token_ids"]])).logits[0, len(ids) - 1 : -1].log_softmax(1)
        assert row["logp"] == same(logps.gather(1, torch.tensor(row["token_ids"])[:, None]).sum().item())


@pytest.mark.float32
def test_a_quantized_base(llama_folder):
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=quantization, dtype="float32")
    torch.manual_seed(0)
    model = get_peft_model(base, lora_config(init_lora_weights=False))
    ImplicitRewardModel(model, None, tiny_tokenizer(), beta=0.1).save_pretrained("adapter")
    policy, reference = Sampler.with_reference("adapter", **OPTIONS)
    assert policy.model is reference.model and policy.model.config.quantization_config.bnb_4bit_quant_type == "nf4"
    prompts = write_prompts(3)
    assert sample("adapter") == 0
    rows = read_samples("out.jsonl")
    assert rows == [asdict(one) for of_prompt in policy.sample(prompts) for one in of_prompt]
    assert [one.logp for row in reference.sample(prompts) for one in row] != [row["logp"] for row in rows]
    for row in rows:
        ids = tiny_tokenizer()(prompts[row["prompt_id"]])["input_ids"]
        with torch.no_grad():
            logps = model.eval()(torch.tensor([ids + row["token_ids"]])).logits[0, len(ids) - 1 : -1].log_softmax(1)
        own = logps.gather(1, torch.tensor(row["token_ids"])[:, None]).sum().item()
        assert row["logp"] == pytest.approx(own, rel=1e-3)  # 4 bits, other shapes


def test_tools_and_variables_of_a_template(llama_folder):
    columns = {"chat_template_kwargs": {"mood": "sunny"}}
    write_prompts(1, kind="chat")
    assert sample(llama_folder) == 0
    write_prompts(1, "other.jsonl", kind="chat", **columns)
    assert sample(llama_folder, prompts="other.jsonl", output="other.out.jsonl") == 0
    plain, sunny = read_samples("out.jsonl")[0], read_samples("other.out.jsonl")[0]
    assert plain["prompt"] == sunny["prompt"] and plain["logp"] != sunny["logp"]


# Bytes


@pytest.mark.float32
def test_batches_do_not_change_a_byte(llama_folder, small_parts):
    write_prompts(7)
    assert sample(llama_folder) == 0
    for tokens in (1, 7, 20_000):
        assert sample(llama_folder, "--max_tokens_per_batch", str(tokens), output=f"{tokens}.jsonl") == 0
        assert Path(f"{tokens}.jsonl").read_bytes() == Path("out.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.float32
def test_killed_anywhere_and_resumed(llama_folder):
    write_prompts(7)
    case = str(Path(__file__).with_name("sample_kill_case.py"))
    program = forked.start([case, llama_folder, "prompts.jsonl"], Path("log"))
    assert program.wait(100) == 0, program.output[-3000:]
    found = json.loads(program.output.splitlines()[-1])
    assert found["tried"] >= 10 and found["wrong"] == []


@pytest.mark.float32
def test_finished_parts_are_not_sampled_again(llama_folder, small_parts, monkeypatch):
    write_prompts(7)
    sampler = Sampler.from_pretrained(llama_folder, **OPTIONS)
    source = open_prompts("prompts.jsonl", sampler.options)
    straight = sample_file(sampler, source, Path("straight.jsonl"))
    assert (straight.num_samples, straight.num_new) == (14, 14)
    sampled: list[int] = []
    real = Sampler.sample_part

    def failing(self, prompts):
        if len(sampled) == 2:
            raise RuntimeError("stopped")
        sampled.append(prompts[0].prompt_id)
        return real(self, prompts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "sample_part", failing)
        with pytest.raises(RuntimeError, match="stopped"):
            sample_file(sampler, source, Path("out.jsonl"))
    second = Path("out.jsonl.parts/part-000001.jsonl")
    second.write_text(second.read_text()[:-20])  # what a full disk may leave
    monkeypatch.setattr(Sampler, "sample_part", lambda self, p: sampled.append(p[0].prompt_id) or real(self, p))
    assert sample_file(sampler, source, Path("out.jsonl")).num_samples == 14
    assert sampled == [0, 2, 2, 4, 6]
    assert Path("out.jsonl").read_bytes() == Path("straight.jsonl").read_bytes()
    assert sample_file(sampler, source, Path("out.jsonl")).num_new == 0
    assert sampled == [0, 2, 2, 4, 6]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.float32
def test_two_processes_write_the_same_bytes(llama_folder):
    write_prompts(9)
    words = ["--num_samples", "200"]  # parts of two prompts
    assert sample(llama_folder, *words, output="one.jsonl") == 0
    command = ["-m", "trl_dpo_ext.cli", "sample", llama_folder, "prompts.jsonl", "--output", "two.jsonl"]
    programs = forked.start_ranks(2, [*command, *WORDS, *words], Path("logs"))
    statuses, printed = forked.wait_for_all(programs, 100), "".join(program.output for program in programs)
    assert statuses == [0, 0], printed
    assert printed.count("Wrote two.jsonl: 1800 samples (") == 1
    assert Path("one.jsonl").read_bytes() == Path("two.jsonl").read_bytes()


# Messages


def refused(capsys: pytest.CaptureFixture[str], model: str, *words: str, **names: str) -> str:
    assert sample(model, *words, **names) == 2
    message = capsys.readouterr().err
    assert message.startswith("trl-dpo-ext sample: ") and message.count("\n") == 1, message
    return message


def test_other_settings_are_refused_by_name(llama_folder, tmp_path, capsys):
    write_prompts(3)
    assert sample(llama_folder) == 0
    before = Path("out.jsonl").read_bytes()
    assert "Wrote out.jsonl: 6 samples (" in capsys.readouterr().err
    assert sample(llama_folder) == 0
    assert "out.jsonl already has these 6 samples." in capsys.readouterr().err

    found = refused(capsys, llama_folder, "--temperature", "0.7", "--seed", "8")
    assert "already exists and was made with other settings: `temperature` was 1.0, is 0.7; " in found
    assert "; `seed` was 7, is 8. Choose" in found
    other = save_tiny(tiny_llama(1), tiny_tokenizer(), tmp_path / "other")
    assert "other settings: `model` changed. Choose" in refused(capsys, other)
    bos = save_tiny(tiny_llama(), tiny_tokenizer(bos=True), tmp_path / "bos")
    assert "other settings: `tokenizer` changed. Choose" in refused(capsys, bos)
    write_prompts(4, "more.jsonl")
    found = refused(capsys, llama_folder, prompts="more.jsonl")
    assert "other settings: `prompts` changed; `num_prompts` was 3, is 4. Choose" in found
    Path("out.jsonl.settings.json").unlink()
    assert "out.jsonl.settings.json does not say how it was made" in refused(capsys, llama_folder)
    assert Path("out.jsonl").read_bytes() == before and not Path("out.jsonl.parts").exists()
    assert sample(llama_folder, "--overwrite", "--seed", "8") == 0
    assert Path("out.jsonl").read_bytes() != before


def test_parts_of_other_settings_are_refused_by_name(llama_folder, small_parts, capsys, monkeypatch):
    write_prompts(7)
    real, done = Sampler.sample_part, []

    def once(self: Sampler, prompts: Any) -> Any:
        done.append(real(self, prompts) if not done else [][0])
        return done[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "sample_part", once)
        assert sample(llama_folder) == 2
    capsys.readouterr()
    found = refused(capsys, llama_folder, "--max_new_tokens", "5")
    assert "has parts of an interrupted run with other settings: `max_new_tokens` was 6, is 5." in found
    assert sample(llama_folder) == 0


def test_rows_that_are_no_prompts(llama_folder, capsys):
    Path("prompts.jsonl").write_text('{"prompt": "Q"}\n\n{"promt": "Q"}\n')
    found = refused(capsys, llama_folder)
    assert "There is no `prompt` in row 1 (line 3) of prompts.jsonl, only promt. Is it `promt`?" in found
    Path("prompts.jsonl").write_text('{"prompt": "Q"}\njunk\n')
    assert "The prompt in row 1 (line 2) of prompts.jsonl cannot be read: " in refused(capsys, llama_folder)
    Path("prompts.jsonl").write_text('{"prompt": "' + "word " * 900 + '"}\n')
    found = refused(capsys, llama_folder)
    assert "tokens. With `max_new_tokens=6` they exceed the 512 positions of the model." in found
    Path("prompts.jsonl").write_text("")
    assert "prompts.jsonl has no rows." in refused(capsys, llama_folder)
    assert "`PROMPTS`: none.jsonl does not exist." in refused(capsys, llama_folder, prompts="none.jsonl")
    assert "out.csv must end in .jsonl." in refused(capsys, llama_folder, output="out.csv")
    assert not list(Path().glob("out*"))


def test_a_model_without_an_end(tmp_path, capsys):
    write_prompts(1)
    model, tokenizer = tiny_gpt2(), tiny_tokenizer()
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token = None
    folder = save_tiny(model, tokenizer, tmp_path / "endless")
    assert "The tokenizer has no EOS token, and the model's generation config names none" in refused(capsys, folder)


def test_prompts_in_parts_of_another_size(llama_folder):
    write_prompts(1)
    sampler = Sampler.from_pretrained(llama_folder, **OPTIONS)
    source = open_prompts("prompts.jsonl", Sampler.from_pretrained(llama_folder, num_samples=1).options)
    with pytest.raises(ValueError, match="Use `open_prompts"):
        sample_file(sampler, source, Path("out.jsonl"))
