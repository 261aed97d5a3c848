"""The table of classes that `rein-hf evaluate` prints."""

import math

from rein_hf.commands.evaluate_tables import class_table


def test_a_class_that_is_absent_is_told_from_one_that_is_never_right():
    """Of the truth: road 6 pixels, sky 2, no car and no bus; the second model sees a car."""
    confusion = [[5, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    iou = {"road": 5 / 6, "sky": 2 / 3, "car": math.nan, "bus": math.nan}
    other = {"road": 0.5, "sky": 0.0, "car": 0.0, "bus": math.nan}
    results = {
        "a": {"d": {"mean_iou": 0.75, "per_class_iou": iou, "confusion": confusion}},
        "b": {"d": {"mean_iou": 1 / 6, "per_class_iou": other, "confusion": confusion}},
    }
    lines = class_table(results, {"a": "one", "b": "other"}, "d", ["road", "sky", "car"]).splitlines()
    assert lines[:7] == [
        "| IoU on d | pixels |   one | other |",
        "| -------- | -----: | ----: | ----: |",
        "| road     | 75.00% | 83.33 | 50.00 |",
        "| sky      | 25.00% | 66.67 |  0.00 |",
        "| car      | absent |     - |  0.00 |",
        "| (bus)    | absent |     - |     - |",
        "| **mean** |        | 75.00 | 16.67 |",
    ]
    assert lines[7].startswith("absent: no pixel of the truth has the class.") and len(lines) == 8
