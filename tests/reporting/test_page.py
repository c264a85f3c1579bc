"""The report: complete, of damaged and empty runs too, and sound in a real browser where one is installed."""

import base64
import json
import re
import shutil
from contextlib import contextmanager

import pytest
from made_runs import config_of, healthy_row, made_snapshot, rows, write_run

from aime_fast.commands.main import main
from aime_fast.reporting.page.page import write_report
from aime_fast.reporting.page.run_record import read_run

LIMIT = 8_000_000
"""Bytes of a page."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    ill = rows(train=lambda step: healthy_row(step) | {"kl_z": 0.1})
    return write_run(folder / "good", snapshot=made_snapshot()), write_run(folder / "ill <b>", ill)


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    return write_report(runs, tmp_path_factory.mktemp("page") / "deep" / "report.html")


def test_the_page_needs_nothing_else_and_is_small(page):
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < LIMIT
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="(?!data:)', own)
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def test_pictures_are_whole_pngs(page):
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text())
    assert len(pictures) >= 14
    assert all(base64.b64decode(picture)[:4] == b"\x89PNG" for picture in pictures)


def test_the_page_says_what_happened(page):
    text = page.read_text()
    assert "kl-collapse" in text and "raise --losses.lambda-recon" in text
    assert "Five frames ahead it predicts at 27.00 dB; copying gives 24.00" in text
    assert "ill &lt;b&gt;" in text and "ill <b>" not in text.split("<script>")[0]


def test_the_summary_prefers_a_kept_evaluation(runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "judged")
    names = ("mean of the futures", "last frame copied", "mean, another window's actions")
    psnr = {name: [{"mean": 30.0 + 4 * place + ahead} for ahead in range(5)] for place, name in enumerate(names)}
    (run / "evaluation.json").write_text(json.dumps({"psnr": psnr}))
    said = "Five frames ahead it predicts at 34.00 dB; copying gives 38.00, another window's actions 42.00."
    assert said in read_run(run).summary


def test_curves_are_those_of_the_rows(page):
    text = page.read_text()
    data = json.loads(re.search(r'id="charts">(.*?)</script>', text, re.DOTALL)[1])
    line = next(chart for chart in data["chief"] if chart["title"] == "kl z")["lines"][0]
    assert line["x"] == list(range(10, 301, 10)) and set(line["y"]) == {40.0}


def test_long_curves_are_thinned_and_keep_the_newest_point(tmp_path):
    run = write_run(tmp_path / "long", rows(steps=12_345, every=5, train=lambda step: {"kl_z": float(step)}))
    text = write_report([run], tmp_path / "report.html").read_text()
    data = json.loads(re.search(r'id="charts">(.*?)</script>', text, re.DOTALL)[1])
    line = next(chart for chart in data["chief"] if chart["title"] == "kl z")["lines"][0]
    assert len(line["x"]) <= 400 and line["x"][-1] == 12_345 and line["x"] == sorted(line["x"])


def damaged(folder, how):
    run = write_run(folder / "run", snapshot=made_snapshot())
    metrics = run / "metrics.jsonl"
    if how == "no rows":
        metrics.unlink()
    elif how == "empty":
        metrics.write_text("")
    elif how == "half a row":
        metrics.write_bytes(metrics.read_bytes()[:-30])
    elif how == "no json":
        lines = metrics.read_text().splitlines()
        metrics.write_text("\n".join([*lines[:5], "garbage", *lines[5:]]) + "\n")
    elif how == "snapshot":
        (run / "snapshot.npz").write_bytes(b"nothing")
    elif how == "no snapshot":
        (run / "snapshot.npz").unlink()
    elif how == "locked":
        (run / "lock").write_text("a run")
    elif how == "evaluation":
        (run / "evaluation.json").write_text("{")
    return run


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no rows", "no row of metrics"),
        ("empty", "no row of metrics"),
        ("half a row", "300 steps in"),
        ("no json", "is damaged"),
        ("snapshot", "is damaged"),
        ("no snapshot", "no figures of the model yet"),
        ("locked", "going on"),
        ("evaluation", "run `aime-fast evaluate"),
    ],
)
def test_an_incomplete_run_is_shown_as_far_as_it_goes(tmp_path, how, words):
    out = write_report([damaged(tmp_path, how)], tmp_path / "report.html")
    assert words in out.read_text().replace("&#34;", '"')


def test_a_complete_run_is_called_so(tmp_path):
    assert read_run(write_run(tmp_path / "a")).status == "complete"
    assert read_run(write_run(tmp_path / "b", rows(steps=200))).status == "stopped early"
    assert read_run(write_run(tmp_path / "c", rows(steps=200), config_of() | {"steps": 200})).status == "complete"


@pytest.mark.parametrize("arguments", [["nowhere"], ["RUN", "--out", "a.pdf"], ["RUN", "--out", "/dev/null/a.html"]])
def test_mistakes_are_one_line(tmp_path, capsys, arguments):
    run = write_run(tmp_path / "run")
    code = main(["report", *(str(run) if part == "RUN" else part for part in arguments)])
    assert code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_verb_writes_beside_the_run(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0 and (run / "report.html").exists()


@contextmanager
def browser(width, height, dark=False):
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("needs Chromium and its driver")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    quiet = ["disable-background-networking", "disable-component-update", "disable-sync", "no-first-run"]
    for flag in ["headless", "no-sandbox", "disable-gpu", *quiet, f"window-size={width},{height}"]:
        options.add_argument(f"--{flag}")
    if dark:
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    try:
        yield window
    finally:
        window.quit()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (500, False)])
def test_a_browser_shows_it_without_errors(page, width, dark):
    with browser(width, 900, dark) as window:
        window.get(page.as_uri())
        assert window.execute_script("return document.body.dataset.ready") == "yes"
        for fold in window.find_elements("css selector", "details"):
            window.execute_script("arguments[0].open = true", fold)
        window.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 0))")
        assert window.get_log("browser") == []
        assert window.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
        charts, drawn = (len(window.find_elements("css selector", name)) for name in (".plot", ".plot .main-svg"))
        assert charts > 12 and drawn >= charts
        assert window.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        back = window.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(20, 22, 26)") == dark
