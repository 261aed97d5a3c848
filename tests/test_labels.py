"""rein_hf.labels: which classes a segmenter, a data set or a metric can have."""

import pytest

from rein_hf.labels import check_class_names, class_names_of


def test_names_that_tell_classes_apart():
    assert check_class_names(["road", "Straße", "Road"], "data") == ("road", "Straße", "Road")
    most = tuple(str(number) for number in range(255))
    assert check_class_names(most, "data") == most


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "^here: there are 0 classes; expected 1 to 255"),
        ([str(number) for number in range(256)], "^here: there are 256 classes; expected 1 to 255.* id 255 means"),
        (["car", "road", "sky", "road"], r"^here: several classes have one name: {'road': \[1, 3\]}"),
        (["car", 7], r"^here: the classes are \['car', 7\]; expected a list of their names"),
    ],
)
def test_names_that_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        check_class_names(names, "here")
    with pytest.raises(ValueError, match=message):
        class_names_of(dict(enumerate(names)), "here")


@pytest.mark.parametrize("names", ["road", 3, None])
def test_what_is_no_list_of_names(names):
    with pytest.raises(ValueError, match=f"^here: the classes are {names}; expected a list"):
        check_class_names(names, "here")


def test_ids_come_in_their_order():
    assert class_names_of({1: "car", 0: "road"}, "id2label") == ("road", "car")
    assert class_names_of({"1": "car", "0": "road"}, "id2label") == ("road", "car")  # as JSON has them
    assert class_names_of({str(number): str(number) for number in range(12)}, "id2label")[10] == "10"


@pytest.mark.parametrize(
    ("id2label", "message"),
    [
        ({1: "road", 2: "car"}, "^id2label has the ids 1, 2; expected 0 to 1, each once"),
        ({0: "road", "0": "car"}, "^id2label has the ids 0, 0; expected 0 to 1"),
        ({-1: "road", 0: "car"}, "^id2label has the ids -1, 0; expected 0 to 1"),
        ({}, "^id2label: there are 0 classes"),
        ({"road": 0}, "^id2label is {'road': 0}; expected a name for each id"),
        (["road"], r"^id2label is \['road'\]; expected a name for each id"),
        (None, "^id2label is None; expected a name for each id"),
        ({0.5: "road"}, "^id2label is {0.5: 'road'}; expected a name for each id"),
        ({None: "road"}, "^id2label is {None: 'road'}; expected a name for each id"),
    ],
)
def test_ids_that_are_refused(id2label, message):
    with pytest.raises(ValueError, match=message):
        class_names_of(id2label, "id2label")
