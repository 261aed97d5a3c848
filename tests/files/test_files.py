"""rein_hf.files: text in UTF-8 on every system, YAML as plain values, files written whole."""

import pytest

from rein_hf.files import atomic_write, read_text, read_yaml


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_utf_8_whatever_the_systems_encoding(tmp_path, encoding, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "cp1252")
    path = tmp_path / "names.yaml"
    path.write_bytes("names: [Straße, Fußweg]\n".encode(encoding))
    assert read_text(path) == "names: [Straße, Fußweg]\n"
    assert read_yaml(path) == {"names": ["Straße", "Fußweg"]}


@pytest.mark.parametrize("read", [read_text, read_yaml])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_bytes_are_refused_by_name(tmp_path, read, encoding):
    path = tmp_path / "names.yaml"
    path.write_bytes("names: [Straße]\n".encode(encoding))
    with pytest.raises(ValueError, match="names.yaml is no text in UTF-8: .*Save it in that encoding"):
        read(path)


def test_yaml_of_another_kind(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("")
    assert read_yaml(path) == {}
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match=r"a.yaml holds list '\[1, 2\]'; expected lines of KEY: VALUE"):
        read_yaml(path)
    path.write_text("a: !!python/object:os.system {}\n")
    with pytest.raises(ValueError, match="a.yaml is no plain YAML"):
        read_yaml(path)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_two_writers_of_one_file(tmp_path):
    """Two runs into one folder: what is there is what one of them wrote, whole."""
    path = tmp_path / "a.txt"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("all of the first")
        second.write_text("half")
        assert first != second and first.suffix == ".txt"
    assert path.read_text() == "all of the first" and [file.name for file in tmp_path.iterdir()] == ["a.txt"]
