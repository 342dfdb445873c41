"""`torpor.values.changes`: it lists every value that differs, and no other."""

from __future__ import annotations

from torpor.values.changes import Change, changes


def test_equal_plans_have_no_changes() -> None:
    """At any depth."""
    plan = {"a": 1, "b": {"c": [1, {"d": 2}]}, "e": None}
    assert changes(plan, {"b": {"c": [1, {"d": 2}]}, "a": 1, "e": None}) == ()


def test_values_are_changed_added_and_removed_by_path() -> None:
    """In the order of the first plan, followed by what is new in the second."""
    before = {"a": 1, "b": {"c": "x", "gone": True}, "same": 0}
    after = {"a": 2, "b": {"c": "y", "new": None}, "same": 0, "z": {"k": 1}}
    assert changes(before, after) == (
        Change(path="a", kind="changed", before=1, after=2),
        Change(path="b.c", kind="changed", before="x", after="y"),
        Change(path="b.gone", kind="removed", before=True, after=None),
        Change(path="b.new", kind="added", before=None, after=None),
        Change(path="z", kind="added", before=None, after={"k": 1}),
    )


def test_lists_are_compared_item_by_item() -> None:
    """An inserted item is one addition. A value of another type is a change."""
    assert changes({"l": ["a", "b", "c"]}, {"l": ["a", "x", "b", "c"]}) == (
        Change(path="l", kind="added", before=None, after="x"),
    )
    assert changes({"l": ["a", "b"]}, {"l": ["a", "c"]}) == (Change(path="l", kind="changed", before="b", after="c"),)
    assert changes({"l": ["a", "b"]}, {"l": []}) == (
        Change(path="l", kind="removed", before="a", after=None),
        Change(path="l", kind="removed", before="b", after=None),
    )
    steps = {"steps": [{"name": "fetch", "argv": ["a"]}, {"name": "compile", "argv": ["b"]}]}
    assert changes(steps, {"steps": [{"name": "compile", "argv": ["c"]}]}) == (
        Change(path="steps.'fetch'", kind="removed", before=steps["steps"][0], after=None),
        Change(path="steps.'compile'.argv", kind="changed", before="b", after="c"),
    )
    assert changes({"l": [{"a": 1, "b": 2}, 3]}, {"l": [{"a": 1, "b": 4}, 3]}) == (
        Change(path="l[0].b", kind="changed", before=2, after=4),
    )
    assert changes({"l": [1]}, {"l": "1"}) == (Change(path="l", kind="changed", before=[1], after="1"),)


def test_json_in_a_text_is_compared_by_its_parts() -> None:
    """A flag may hold a JSON object. Text that only begins like one stays text."""
    before, after = '{"rope": {"factor": 2, "kind": "yarn"}}', '{"rope": {"factor": 4, "kind": "yarn"}}'
    assert changes({"flag": before}, {"flag": after}) == (
        Change(path="flag.rope.factor", kind="changed", before=2, after=4),
    )
    assert changes({"flag": "{a"}, {"flag": after}) == (Change(path="flag", kind="changed", before="{a", after=after),)
    deep = '{"a":' * 50_000
    assert changes({"flag": deep + "1"}, {"flag": deep + "2"})[0].path == "flag"


def test_findings_of_the_same_name_are_all_compared() -> None:
    """None is lost."""
    before = {"warnings": [{"what": "env", "seen": "A"}, {"what": "env", "seen": "B"}]}
    after = {"warnings": [{"what": "env", "seen": "A"}, {"what": "env", "seen": "C"}]}
    assert changes(before, after) == (Change(path="warnings[1].seen", kind="changed", before="B", after="C"),)
    assert changes(before, {"warnings": []}) == (
        Change(path="warnings", kind="removed", before={"what": "env", "seen": "A"}, after=None),
        Change(path="warnings", kind="removed", before={"what": "env", "seen": "B"}, after=None),
    )


def test_a_number_that_became_a_switch_is_a_change() -> None:
    """1 and True are equal in Python, but differ in a plan."""
    assert changes({"a": 1, "b": {}}, {"a": 1.0, "b": {"c": 1}}) == (
        Change(path="b.c", kind="added", before=None, after=1),
    )
    assert changes({"a": 1}, {"a": True}) == (Change(path="a", kind="changed", before=1, after=True),)
