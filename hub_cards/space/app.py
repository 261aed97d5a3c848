"""The page of an adapter, as a Space. Beside a folder `adapter` that holds it, it runs offline."""

from pathlib import Path

from rein_hf.page import Adapters, Service, find_examples, launch_page


REPO = "{{ repo }}"
HERE = Path(__file__).parent

adapter = HERE / "adapter"
examples = HERE / "examples"
service = Service(
    Adapters([adapter if adapter.is_dir() else REPO]),
    find_examples([examples] if examples.is_dir() else []),
)
launch_page(service, title=f"Segment a photo with {REPO.partition('/')[2]}")
