"""Recipes that are no recipes are one message, with their line."""

import pytest

from trl_dpo_ext.cli.recipe_file import read_recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"beta: 1\nseed: 2\nbeta: 3\n", r"r.yaml, line 3, is not YAML: `beta` .* twice, first in line 1"),
        (b"env:\n  A: 1\n  A: 2\n", r"r.yaml, line 3, is not YAML: `A` .* twice, first in line 2"),
        (b"a: !!python/object:os.system x\n", r"line 1, is not YAML: could not determine a constructor"),
        (b"a: !!python/object/apply:os.system ['touch pwned']\n", r"line 1, is not YAML: could not determine"),
        ("a: 1\nrun_name: é\n".encode("latin-1"), r"r.yaml, line 2, is not UTF-8 text. Save it in UTF-8."),
        ("a: 1\n".encode("utf-16"), r"r.yaml, line 1, is not UTF-8 text"),
        (b"", r"r.yaml is not a YAML mapping of options to values."),
        (b"- a\n", r"r.yaml is not a YAML mapping of options to values."),
        (b"a: " + b"[" * 100_000, r"r.yaml is not YAML: maximum recursion depth"),
        (b"a: " + b"9" * 5000, r"r.yaml is not YAML: Exceeds the limit"),
        (b"a: 2024-13-45\n", r"r.yaml is not YAML: month must be in 1..12"),
        (b"a: b: c\n", r"r.yaml, line 1, is not YAML: mapping values are not allowed here"),
        (b"? [1]\n: 2\n", r"r.yaml, line 1, is not YAML: found unhashable key"),
        (b"a\0b: 1\n", r"r.yaml is not YAML: unacceptable character|r.yaml.*special characters are not allowed"),
    ],
    ids=range(14),
)
def test_refused(tmp_path, content, message):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_recipe(path)


def test_folders_and_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder. `--config` .* recipe"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(ValueError, match=r"there is no recipe .*recpe.yaml. Did you mean .*/recipe.yaml\?"):
        read_recipe(tmp_path / "recpe.yaml")


def test_json_a_byte_order_mark_and_merged_anchors_are_read(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b'\xef\xbb\xbf{"beta": 0.1, "seed": 3,}')
    assert read_recipe(path) == {"beta": 0.1, "seed": 3}
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_recipe(path)["b"] == {"x": 1, "y": 3}
