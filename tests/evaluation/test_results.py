"""Results: what a run has measured, on the disk after every entry."""

import json
import math
import os

import pytest

from rein_hf.evaluation import Results


def test_entries_are_on_the_disk_at_once(tmp_path):
    path = tmp_path / "new" / "results.json"
    results = Results(path)
    results.put({"camvid": 0.5}, "rein")
    results.put({"kitti": math.nan}, "rein")
    assert json.loads(path.read_text(encoding="utf-8")) == {"rein": {"camvid": 0.5, "kitti": None}}
    again = Results(path, resume=True)
    assert again.has("rein", "camvid") and not again.has("rein", "acdc") and not again.has("full", "camvid")
    assert math.isnan(again.values["rein"]["kitti"])
    assert Results(path).values == {} and not Results(tmp_path / "other.json", resume=True).values
    Results(path, writes=False).put({"camvid": 1.0}, "rein")
    assert Results(path, resume=True).values["rein"]["camvid"] == 0.5


def test_names_of_any_language_survive(tmp_path):
    """Also those of folders that are no text, in any encoding of the system."""
    path, names = tmp_path / "results.json", ["Straße", "木", os.fsdecode(b"stra\xdfe")]
    Results(path).put(dict.fromkeys(names, 0.5), "Modell für Straßen")
    assert list(Results(path, resume=True).values["Modell für Straßen"]) == names
    path.write_text('{"Straße": {}}', encoding="utf-8-sig")  # as some editors save it
    assert Results(path, resume=True).has("Straße")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "results.json is no JSON"),
        (b"[1]", "results.json holds a list; expected the results of a run"),
        ("Straße".encode("latin-1"), "results.json is no text in UTF-8"),
    ],
)
def test_files_that_are_no_results(tmp_path, content, message):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Results(tmp_path / "results.json", resume=True)


def test_settings_must_be_those_of_the_results(tmp_path):
    path = tmp_path / "settings.json"
    Results(path).put_settings({"limit": 3, "crop": None, "bf16": False})
    Results(path, resume=True).put_settings({"limit": 3, "stride": None})
    for other in ({"limit": 4}, {}, {"limit": 3, "seed": 0}):
        with pytest.raises(ValueError, match="were made with {'limit': 3}, but this run asks for"):
            Results(path, resume=True).put_settings(other)
    Results(path).put_settings({})  # from the beginning
    assert Results(path, resume=True).values == {"settings": {}}
