"""rein_hf.hub_data: parquet files with image and label columns, downloaded and streamed."""

import io
import itertools

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from rein_hf.data import Stream, TrainingSamples, load_domain


def png(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def parquet(tmp_path):
    """A folder of two parquet files: nine images, number n of red value n; its label holds label id 7 and n."""
    features = datasets.Features(
        {"photo": datasets.Image(), "mask": datasets.Image(), "city": datasets.Value("string")}
    )
    for file, numbers in (("a", range(5)), ("b", range(5, 9))):
        rows = {
            "photo": [png(np.full((6, 8, 3), n, np.uint8)) for n in numbers],
            "mask": [png(np.full((6, 8), [[7] * 4 + [n] * 4], np.uint8)) for n in numbers],
            "city": ["x"] * len(numbers),
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"train-{file}.parquet"))
    return tmp_path


def spec(folder, streaming: bool, ids: str = "label_ids") -> str:
    return f"photos=hub:{folder}@train#image=photo#label=mask#ids={ids}#streaming={str(streaming).lower()}"


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_by_name(parquet, streaming):
    domain = load_domain(spec(parquet, streaming))
    samples = list(domain.dataset)
    assert isinstance(domain.dataset, Stream) == streaming and domain.name == "photos"
    assert len(samples) == 9
    for n, sample in enumerate(samples):
        assert sample.keys() == {"name", "image", "label", "domain"}
        assert (sample["name"], sample["domain"]) == (str(n), "photos")
        assert sample["image"].getpixel((0, 0)) == (n, n, n)
        assert np.unique(sample["label"]).tolist() == sorted({0, {7: 0, 8: 1}.get(n, 255)})


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_are_named(parquet, streaming):
    with pytest.raises(ValueError, match=r"label 0 holds the ids \[\d+.*\], which the table"):
        bad = {"photo": [png(np.zeros((6, 8, 3), np.uint8))], "mask": [png(np.full((6, 8), 99, np.uint8))]}
        features = datasets.Features({"photo": datasets.Image(), "mask": datasets.Image()})
        for path in parquet.iterdir():
            path.unlink()
        datasets.Dataset.from_dict(bad, features=features).to_parquet(str(parquet / "train.parquet"))
        next(iter(load_domain(spec(parquet, streaming)).dataset))


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_columns(parquet, streaming):
    message = r"has the columns \['photo', 'mask', 'city'\]; found no \['image', 'label'\]"
    with pytest.raises(ValueError, match=message):
        load_domain(f"hub:{parquet}#streaming={str(streaming).lower()}")


def test_a_share_of_a_stream(parquet):
    stream = load_domain(spec(parquet, True)).dataset
    shares = [[sample["name"] for sample in stream.share(rank, 2)] for rank in (0, 1)]
    assert shares == [list("02468"), list("1357")]
    assert [sample["name"] for sample in stream.share(1, 2, limit=4)] == ["1", "3"]


def named(image, label, rng):
    return image, int(rng.integers(0, 2**31))


def seen(samples, positions) -> list[tuple[str, int]]:
    return [(samples[k]["name"], samples[k]["label"]) for k in positions]


@pytest.mark.parametrize("buffer", [3, 1000])
def test_a_streamed_sample_depends_on_seed_and_position_only(parquet, buffer, monkeypatch):
    monkeypatch.setattr("rein_hf.data.hub_datasets.SHUFFLE_BUFFER", buffer)
    stream = load_domain(spec(parquet, True)).dataset
    expected = seen(TrainingSamples([stream], 27, named, seed=3), range(27))
    assert seen(TrainingSamples([stream], 27, named, seed=3), range(11, 27)) == expected[11:]  # resumed
    assert seen(TrainingSamples([stream], 27, named, seed=3), range(1, 27, 2)) == expected[1::2]  # second of two
    again = TrainingSamples([stream], 27, named, seed=3)
    assert seen(again, [20, 4, 5]) == [expected[k] for k in (20, 4, 5)]  # backwards: from the beginning
    epochs = [[name for name, _ in expected[start : start + 9]] for start in (0, 9, 18)]
    assert all(sorted(epoch) == list("012345678") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = [name for name, _ in seen(TrainingSamples([stream], 27, named, seed=4), range(27))]
    assert other != list(itertools.chain(*epochs))


def test_a_stream_in_a_mixture(parquet):
    stream, pool = (load_domain(spec(parquet, streaming)).dataset for streaming in (True, False))
    with pytest.raises(ValueError, match="A streamed source has no size.*expected weights"):
        TrainingSamples([stream, pool], 10, named)
    samples = TrainingSamples([stream, pool], 40, named, weights=[1, 3])
    assert seen(samples, range(40))[7:] == seen(
        TrainingSamples([stream, pool], 40, named, weights=[1, 3]), range(7, 40)
    )


def test_an_empty_stream(parquet):
    stream = load_domain(spec(parquet, True)).dataset
    empty = Stream(stream.dataset.filter(lambda row: False), stream.decode)
    with pytest.raises(ValueError, match="A streamed data set holds no sample"):
        TrainingSamples([empty], 3, named)[0]


def test_a_stream_has_no_names_to_choose_by(parquet):
    with pytest.raises(ValueError, match="is streamed; every, skip_every and exclude need streaming=false"):
        load_domain(spec(parquet, True) + "#every=2")


def test_one_worker_reads_a_stream_and_several_are_refused(parquet):
    """datasets gives each of several a part of the files, so that samples would depend on their number."""
    stream = load_domain(spec(parquet, True)).dataset
    expected = [name for name, _ in seen(TrainingSamples([stream], 12, named, seed=3), range(12))]
    samples = TrainingSamples([stream], 12, named, seed=3)
    loaded = DataLoader(samples, batch_size=None, num_workers=1, collate_fn=lambda sample: sample)
    assert [sample["name"] for sample in loaded] == expected
    with pytest.raises(ValueError, match="2 worker processes read a streamed data set.*dataloader_num_workers: 1"):
        list(DataLoader(samples, batch_size=None, num_workers=2, collate_fn=lambda sample: sample))


def test_after_a_lost_connection_a_stream_is_read_from_the_start(parquet, monkeypatch):
    stream = load_domain(spec(parquet, True)).dataset
    expected = seen(TrainingSamples([stream], 9, named, seed=3), range(9))
    samples, rows = TrainingSamples([stream], 9, named, seed=3), list(stream.dataset)
    lost = [True]

    class Connection:
        def __iter__(self):
            yield from rows[:4]
            if lost:
                lost.clear()
                raise ConnectionError("lost")
            yield from rows[4:]

    monkeypatch.setattr(stream, "dataset", Connection())
    with pytest.raises(ConnectionError):
        samples[0]
    assert seen(samples, range(9)) == expected
