"""Yaml as a tree: scalars are what they look like, and what is written is read back."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.config.yaml_tree import dump, parse
from tuner.errors import ConfigError


def test_scalars_have_the_type_of_their_notation() -> None:
    text = "[1e-3, 1E5, 1.0e-4, 4_000_000, 0x10, .inf, no, on, 010, 1:30, 2024-01-01, ~, true, '1', -.5, 1.]"
    read = parse(text, "experiments.yaml").plain()
    assert read[:6] == [0.001, 1e5, 1e-4, 4_000_000, 16, float("inf")]
    assert read[6:] == ["no", "on", 10, "1:30", "2024-01-01", None, True, "1", -0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: " + "[" * 5000, "e.yaml: is not valid yaml: its blocks and lists are nested too deeply"),
        ("a: !!set {b}", "e.yaml:1: a: a block or list cannot be read as set"),
        ("a: !b {c: 1}", "e.yaml:1: a: a block or list cannot be read as !b"),
        ("a: {!b c: 1}", "e.yaml:1: a: a key must be a word"),
        ("!!int b: 1", "e.yaml:1: a key must be a word"),
        ("a: {<<: b, c: 1}", "e.yaml:1: a: << takes a block, or a list of blocks"),
        ("a: {<<: [{b: 1}, 2]}", "e.yaml:1: a: << takes a block, or a list of blocks"),
        ("a: !!int b", "e.yaml:1: a: 'b' cannot be read as int"),
        ("a: " + "9" * 5000, "e.yaml:1: a: '" + "9" * 79 + " cannot be read as int"),
    ],
)
def test_what_has_no_value_is_refused_in_one_sentence(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "e.yaml")
    assert str(error.value) == told


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
        | st.sampled_from(["1e-3", "no", "<<", "null", "1_0", "~", "${X}", "0x1", ".nan", "2024-01-01", "=", "- a"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)  # fmt: skip
def test_a_dumped_tree_reads_back_equal(value: Any) -> None:
    read = parse(dump(value), "experiments.yaml").plain()
    assert read == value
    assert repr(read) == repr(value)
