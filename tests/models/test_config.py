import re
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from gdml.models import get_model, list_models
from gdml.models.config import Config

CHOICES = [
    (name, field.name)
    for name in list_models()
    for field in fields(get_model(name).config_class)
    if get_origin(get_type_hints(get_model(name).config_class)[field.name]) is Literal
]


@dataclass(frozen=True)
class Own(Config):
    width: int = 8
    heads: int = 2
    rate: float = 0.5
    kind: Literal["one", "two"] = "one"


def test_models_have_choices():
    assert {name for name, _ in CHOICES} == set(list_models()) - {"kernel"}  # which has numbers alone


@pytest.mark.parametrize(("name", "field"), CHOICES)
def test_every_choice_of_every_model_is_checked(name, field):
    config = get_model(name).config_class
    for value in get_args(get_type_hints(config)[field]):
        if (field, value) != ("projection", "shared"):  # which needs branch_width=0
            assert getattr(config(**{field: value}), field) == value
    wrong = str(get_args(get_type_hints(config)[field])[0])[:-1] + "x"
    with pytest.raises(ValueError, match=re.escape(f"`{field}` is {wrong!r}. ")):
        config(**{field: wrong})


@pytest.mark.parametrize(
    ("options", "check", "message"),
    [
        ({"width": 1}, lambda c: c.check_at_least(2, "width"), "`width` must be at least 2, found 1"),
        ({"rate": -0.1}, lambda c: c.check_at_least(0, "rate"), "`rate` must not be negative, found -0.1"),
        ({"rate": float("nan")}, lambda c: c.check_at_least(0, "rate"), "`rate` must not be negative, found nan"),
        ({"rate": 0}, lambda c: c.check_positive("rate"), "`rate` must be positive, found 0"),
        ({"rate": 1.1}, lambda c: c.check_share("rate"), r"`rate` must lie in \[0, 1\], found 1.1"),
        ({"rate": 1}, lambda c: c.check_share("rate", closed=False), r"`rate` must lie in \[0, 1\), found 1"),
        ({"heads": 3}, lambda c: c.check_heads("heads"), "`heads` must divide `width`: found 3 heads for width 8"),
        ({"heads": 0}, lambda c: c.check_heads("heads"), "`heads` must divide `width`: found 0 heads"),
    ],
)
def test_checks_of_numbers(options, check, message):
    with pytest.raises(ValueError, match=message):
        check(Own(**options))
    plain = Own()
    plain.check_at_least(8, "width")
    plain.check_positive("rate")
    plain.check_share("rate", closed=False)
    plain.check_heads("heads")
