"""What is known as a secret, by its name or its form, and what is not."""

import pytest

from trl_dpo_ext.trainers.options.secrets import shown, without_secrets


@pytest.mark.parametrize(
    "name", ["hub_token", "token", "HF_TOKEN", "api_key", "WANDB_API_KEY", "password", "Authorization"]
)
def test_by_name(name):
    assert without_secrets({"a": [{name: "word"}]}) == {"a": [{name: "<secret>"}]}
    assert without_secrets({name: "word"}, mask=None) == {name: None}
    assert "plain" not in shown({name: "plain"}) + shown("plain", name)


@pytest.mark.parametrize(
    "name", ["pad_token", "eos_token", "image_token", "max_new_tokens", "num_tokens", "tokenization"]
)
def test_what_only_sounds_like_one(name):
    assert without_secrets({name: "word"}) == {name: "word"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("run hf_abcdefghijkl now", "run <secret> now"),
        ("https://user:word@host/x", "https://<secret>@host/x"),
        ("ghp_abcdefghijkl", "<secret>"),
        ("models/hf_x", "models/hf_x"),
        ("self-hf_model", "self-hf_model"),
    ],
)
def test_by_form(text, left):
    assert without_secrets(text) == left


def test_what_is_shown_is_short_however_large_it_is():
    bomb = ["x"]
    for _ in range(60):
        bomb = [bomb] * 9
    assert len(shown(bomb)) < 3000
    assert shown(10**5000) == "<an integer of 16610 bits>"
