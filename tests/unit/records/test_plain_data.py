"""Records to JSON types and back."""

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from musicnet.records.plain_data import from_plain, to_plain


@dataclass(frozen=True)
class Inner:
    share: float = 0.5

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be from 0 to 1: got {self.share}.")


@dataclass(frozen=True)
class Outer:
    count: int
    kind: Literal["line", "ring"] = "line"
    pair: tuple[float, float] = (0.0, 1.0)
    levels: tuple[int, ...] = ()
    table: tuple[tuple[float, ...], ...] | None = None
    inner: Inner | None = None
    more: list[Inner] = field(default_factory=list)
    either: int | str = 0
    is_known: bool = False


FULL = Outer(3, "ring", (-1.5, 2.0), (1, 2, 3), ((0.0,), (1.0, 2.0)), Inner(0.1), [Inner()], "x")


@pytest.mark.parametrize("record", [Outer(1), FULL])
def test_a_record_comes_back_through_json(record):
    plain = json.loads(json.dumps(to_plain(record)))
    assert from_plain(Outer, plain, "outer") == record


def test_a_whole_number_may_stand_for_a_float():
    read = from_plain(Outer, {"count": 1, "pair": [0, 2]}, "outer", fill_defaults=True)
    assert read.pair == (0.0, 2.0)
    assert all(type(value) is float for value in read.pair)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuont": 1}, r"outer has an unknown key 'cuont'\. Did you mean 'count'"),
        ({"count": None}, "outer.count must be int: got None"),
        ({"count": True}, "outer.count must be int: got True"),
        ({"count": 1.5}, "outer.count must be int: got 1.5"),
        ({"kind": "disc"}, r"outer.kind must be one of \('line', 'ring'\): got 'disc'"),
        ({"pair": [0.0]}, "outer.pair must hold 2 values: got 1"),
        ({"pair": 0.0}, "outer.pair must be a list: got 0.0"),
        ({"pair": [0.0, "a"]}, r"outer.pair\[1\] must be a finite number: got 'a'"),
        ({"pair": [0.0, float("nan")]}, r"outer.pair\[1\] must be a finite number: got nan"),
        ({"table": [[0.0], [True]]}, r"outer.table\[1\]\[0\] must be a finite number: got True"),
        ({"inner": {"share": 2.0}}, "outer.inner: share must be from 0 to 1: got 2.0"),
        ({"inner": {}}, "outer.inner lacks the key 'share'; it has none"),
        ({"inner": [1]}, r"outer.inner must be a mapping: got \[1\]"),
        ({"either": 0.5}, "outer.either must be str: got 0.5"),
        ({"is_known": 1}, "outer.is_known must be bool: got 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_plain(Outer, {**to_plain(Outer(1)), **change}, "outer")
    assert "\n" not in str(caught.value)


def test_every_key_must_be_there_unless_defaults_fill():
    with pytest.raises(ValueError, match="outer lacks the key 'kind'; it has count"):
        from_plain(Outer, {"count": 1}, "outer")
    assert from_plain(Outer, {"count": 1}, "outer", fill_defaults=True) == Outer(1)
    with pytest.raises(ValueError, match="outer lacks the key 'count'"):
        from_plain(Outer, {}, "outer", fill_defaults=True)


def test_what_is_no_json_type_is_refused():
    with pytest.raises(TypeError, match="got set"):
        to_plain({"a": {1}})
