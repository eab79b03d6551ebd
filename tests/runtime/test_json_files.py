from typing import TypedDict

import pytest

from modeling_dino.runtime.json_files import read_json


class Shape(TypedDict):
    rows: int
    features: dict[str, list[int]]


def test_what_the_schema_says_is_read(tmp_path):
    file = tmp_path / "shape.json"
    file.write_text('{"rows": 3, "features": {"cls": [4]}, "more": null}')
    assert read_json(file, Shape) == {"rows": 3, "features": {"cls": [4]}, "more": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is not JSON"),
        ('{"rows": 3', "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("\xff\xfe", "it is not JSON"),
        ("null", "it is not a mapping"),
        ("[]", "it is not a mapping"),
        ('{"rows": 3}', "it lacks features"),
        ('{"rows": "3", "features": {}}', "Field 'rows' expected int, got str"),
        ('{"rows": true, "features": {}}', "Field 'rows' expected int, got bool"),
        ('{"rows": 3, "features": {"cls": ["4"]}}', "features"),
        ('{"rows": 3, "features": null}', "features"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, text, message):
    file = tmp_path / "shape.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"shape\.json is damaged: ") as caught:
        read_json(file, Shape)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
