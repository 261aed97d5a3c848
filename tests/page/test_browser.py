"""The page in a real browser: Debian's chromium, headless, driven by Selenium."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rein_hf
from rein_hf.page import launch_page
from tests.support.pages import free_port


pytest.importorskip("gradio", reason='the page is served by Gradio: pip install "rein-hf[page]"')
webdriver = pytest.importorskip("selenium.webdriver", reason="the browser's driver: pip install selenium")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
ui = pytest.importorskip("selenium.webdriver.support.ui")

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not BROWSER or not DRIVER:
    pytest.skip("there is no browser: apt-get install chromium chromium-driver", allow_module_level=True)
WAIT = 60  # seconds

# A file dropped onto the page, as a browser makes one of what the visitor's hand lets fall.
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], arguments[1]));
document.querySelector(".drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
"""
PIXELS = """
const canvas = document.querySelector("canvas");
return canvas.toDataURL("image/png");
"""
MOVE = """
const slider = document.querySelector(arguments[0]);
slider.value = arguments[1];
for (const kind of ["input", "change"]) slider.dispatchEvent(new Event(kind, { bubbles: true }));
"""


@pytest.fixture(scope="module")
def address(service):
    page, address = launch_page(service, "Try it", port=free_port(), wait=False)
    yield address
    page.close()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(switch)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


class Visitor:
    """What a visitor does and sees."""

    def __init__(self, browser, address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.until(lambda: browser.find_elements("css selector", ".rein-page[data-ready]"))

    def until(self, condition):
        return ui.WebDriverWait(self.browser, WAIT, 0.05).until(lambda _: condition())

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def choose(self, selector: str, value: str) -> None:
        ui.Select(self.find(selector)).select_by_value(value)

    def picture(self) -> np.ndarray:
        content = base64.b64decode(self.browser.execute_script(PIXELS).partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)

    def drop(self, content: bytes, name: str) -> None:
        self.browser.execute_script(DROP, base64.b64encode(content).decode(), name)

    def see_a_picture(self) -> None:
        self.until(lambda: self.find(".work").is_displayed() and not self.find(".status").text)


@pytest.fixture
def visitor(browser, address) -> Visitor:
    return Visitor(browser, address)


def test_a_photo_is_dropped_and_tried(visitor, adapter_folders, photos, downloads):
    photo = photos / "street.png"
    visitor.drop(photo.read_bytes(), "street.png")
    visitor.see_a_picture()
    visitor.choose(".detail", "every pixel")
    visitor.see_a_picture()
    labels = {}
    for folder in adapter_folders:
        model = rein_hf.from_pretrained(folder).requires_grad_(False)
        labels[folder.name] = rein_hf.segment(model, rein_hf.build_image_processor(), photo)

    # the overlay changes with the adapter
    pictures = {}
    for name in ("day", "night"):
        visitor.choose(".adapter", name)
        visitor.see_a_picture()
        visitor.browser.execute_script(MOVE, ".opacity", 100)
        pictures[name] = visitor.picture()
        expected = np.asarray(rein_hf.colorize(labels[name], model)).astype(int)
        assert np.abs(pictures[name] - expected).max() <= 1
    assert (pictures["day"] != pictures["night"]).any()

    # a class is switched off: there, and only there, the photo is seen
    label = int(np.bincount(labels["night"].ravel()).argmax())
    visitor.find(f'.entries input[name="{model.config.id2label[label]}"]').click()
    hidden = visitor.picture()
    off = labels["night"] == label
    assert np.array_equal(hidden[~off], pictures["night"][~off])
    assert np.abs(hidden[off] - np.asarray(Image.open(photo).convert("RGB"))[off]).mean() < 12  # JPEG of noise
    visitor.find(".all").click()
    assert np.array_equal(visitor.picture(), pictures["night"])

    # before / after
    visitor.browser.execute_script(MOVE, ".before", 50)
    half = visitor.picture()
    visitor.find('.views input[value="photo"]').click()
    plain = visitor.picture()
    visitor.find('.views input[value="classes"]').click()
    assert np.array_equal(half[:, :40], plain[:, :40])  # the line between is at 45, 5 pixels wide
    assert np.array_equal(half[:, 50:], pictures["night"][:, 50:])

    # the label map is that of segment
    visitor.find(".save-labels").click()
    file = downloads / "street_label.png"
    visitor.until(file.is_file)
    assert np.array_equal(np.asarray(Image.open(file)), labels["night"])
    visitor.find(".save-overlay").click()
    file = downloads / "street_overlay.jpg"
    visitor.until(file.is_file)
    assert Image.open(file).width == 90
    assert [entry for entry in visitor.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_keyboard_is_enough(visitor, service):
    visitor.find(".examples button").send_keys(Keys.ENTER)
    visitor.see_a_picture()
    canvas = visitor.find("canvas")
    canvas.send_keys(Keys.ARROW_LEFT, Keys.ARROW_UP)
    named = visitor.find(".pixel").text
    assert named.split(",")[0] in [name for name, _ in service.adapters.classes] and "probability" in named
    visitor.find(".explain").send_keys(Keys.ENTER)
    visitor.until(lambda: visitor.find(".sheet").is_displayed())
    reached = []
    for _ in range(60):
        webdriver.ActionChains(visitor.browser).send_keys(Keys.TAB).perform()
        reached.append(visitor.browser.execute_script("return document.activeElement.className || ''"))
    for control in ("file", "before", "adapter", "detail", "opacity", "corruption", "save-labels", "save-overlay"):
        assert control in reached or visitor.find(f".{control}").get_attribute("disabled"), control


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a text file", "no photo that the page can read"),
        (b"", "is an empty file"),
        (bytes(21_000_000), "this page takes 20 MB at most"),
    ],
)
def test_mistakes_are_sentences_and_the_page_goes_on(visitor, photos, content, words):
    if len(content) > 1_000_000:  # too much to be handed over by the driver
        script = "arguments[0] = btoa('x'.repeat(21000000)); arguments[1] = 'photo.jpg';"
        visitor.browser.execute_script(script + DROP)
    else:
        visitor.drop(content, "photo.jpg")
    visitor.until(lambda: words in visitor.find(".error").text)
    assert not visitor.find(".work").is_displayed()
    visitor.drop((photos / "square.png").read_bytes(), "square.png")
    visitor.see_a_picture()
    assert not visitor.find(".error").is_displayed()


def test_a_lost_server_is_said_and_tried_again(visitor):
    visitor.browser.set_network_conditions(offline=True, latency=0, throughput=0)
    try:
        visitor.find(".examples button").click()
        visitor.until(lambda: "The server cannot be reached" in visitor.find(".error").text)
    finally:
        visitor.browser.delete_network_conditions()
    visitor.find(".again").click()
    visitor.see_a_picture()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(browser, address, width, theme):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        visitor = Visitor(browser, f"{address}?__theme={theme}")
        visitor.find(".examples button").click()
        visitor.see_a_picture()
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        style = "return getComputedStyle(document.querySelector('.rein-page')).color"
        colour = browser.execute_script(style)
        light = sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(","))) > 380
        assert light == (theme == "dark")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
