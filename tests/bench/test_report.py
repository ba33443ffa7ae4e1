"""The report's files, and the page in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from bench_reports import failed, report_of, result_of
from boxwright.bench.accuracy import Predictions
from boxwright.bench.gallery import find_disagreements, share_without_partner
from boxwright.bench.noise import Comparison, Verdict
from boxwright.bench.report import check_report_writable, write_report
from boxwright.bench.report_html import page_data, to_html
from boxwright.bench.report_markdown import pair_lines, to_markdown
from boxwright.bench.run import BenchRun
from boxwright.core.detections import Detections
from boxwright.core.errors import OutputError
from generated_detections import dataset_of, detections_of, sample_of
from webdriver import Browser, missing_browser, open_browser

BOX = [20.0, 30.0, 120.0, 90.0]
HOSTILE_NAME = 'a</script><b>&amp;"quoted" | piped'


def make_run(folder: Path, *, with_failure: bool = True) -> BenchRun:
    """Three candidates on two images; they agree on the first and not on the second."""
    samples = []
    for index in range(2):
        path = folder / f"{index}.jpg"
        cv2.imwrite(str(path), np.full((300, 400, 3), 60 + 90 * index, np.uint8))
        samples.append(sample_of([BOX], [index], image_id=index + 1, image_path=path))
    dataset = dataset_of(samples, ("cat", "dog", "never"), root=folder)
    right = (detections_of([BOX], [0.9], [0]), detections_of([BOX], [0.8], [1]))
    blind = (right[0], Detections.empty())
    predictions = {
        "fast": Predictions(samples=tuple(samples), detections=blind),
        "good": Predictions(samples=tuple(samples), detections=right),
        HOSTILE_NAME: Predictions(samples=tuple(samples), detections=right),
    }
    results = [
        result_of("fast", p50_ms=5.0, map_=0.25, backend="openvino", precision="int8"),
        result_of("good", p50_ms=20.0, map_=0.40),
        result_of(HOSTILE_NAME, p50_ms=25.0, map_=0.30),
    ]
    if with_failure:
        results.append(failed(result_of("broken", p50_ms=1.0, map_=0.5)))
    precisions = np.tile(np.linspace(1, 0, 101), (3, 1))
    precisions[2] = np.nan
    return BenchRun(
        report=report_of(*results),
        predictions=predictions,
        class_precisions=dict.fromkeys(predictions, precisions),
        dataset=dataset,
        interrupted=False,
    )


def test_writes_all_files(tmp_path: Path) -> None:
    files = write_report(make_run(tmp_path), tmp_path / "out" / "report")
    assert sorted(path.name for path in files.results.parent.iterdir()) == [
        "pareto.png", "report.html", "report.md", "results.json"
    ]  # fmt: skip
    assert files.plot is not None
    picture = cv2.imread(str(files.plot))
    assert picture.shape[0] > 400 and picture.shape[1] > 800
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50  # not an empty canvas
    assert json.loads(files.results.read_text())["pareto"][0]["name"] == "fast"


def test_the_markdown_names_what_a_reader_needs(tmp_path: Path) -> None:
    text = to_markdown(make_run(tmp_path).report, plot_file="pareto.png")
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("| fast | openvino | int8 ")]
    assert len(table) == 1
    assert "0.2500" in table[0] and "200.0" in table[0] and "1.25" in table[0]
    assert any(line.startswith('| a</script><b>&amp;"quoted" \\| piped | onnxruntime |') for line in lines)
    for wanted in (
        "- **broken**: crashed: its process ended with signal 11",
        "![FPS against mAP](pareto.png)",
        "Test CPU, 2 cores",
        "CPU features: avx2",
        "onnxruntime 1.0",
        "boxwright bench a.onnx b.onnx --data data",
        "after: load 1.10, 50 degrees C",
    ):
        assert wanted in text
    assert "GPU MB" not in text  # no row has any
    accuracy = text.partition("## Accuracy")[2].partition("## ")[0].splitlines()
    assert accuracy[2].startswith("| candidate | AP | AP50 | AP75 | AP medium | AP large | AR 1 ")
    assert [line.split(" | ")[0] for line in accuracy[4:6]] == ["| fast", "| good"]
    assert accuracy[5].endswith("| conf 0.001, IoU 0.7, 300 boxes |")
    assert "fast and good: the first is faster" in text


def test_a_report_without_any_measured_candidate(tmp_path: Path) -> None:
    run = make_run(tmp_path)._replace(
        report=report_of(failed(result_of("broken", p50_ms=1.0, map_=0.5))), predictions={}, class_precisions={}
    )
    files = write_report(run, tmp_path / "report")
    assert files.plot is None
    assert "pareto.png" not in files.markdown.read_text()
    assert page_data(run)["gallery"] == []


def test_a_folder_that_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="expected a path that can be written"):
        check_report_writable(tmp_path / "file" / "report")


def test_disagreements_are_the_images_on_which_candidates_differ(tmp_path: Path) -> None:
    rows = find_disagreements(make_run(tmp_path).predictions)
    assert [(row.sample.image_id, row.share) for row in rows] == [(2, 1.0)]
    assert {name: len(found) for name, found in rows[0].detections.items()} == {"fast": 0, "good": 1, HOSTILE_NAME: 1}
    assert find_disagreements({"good": make_run(tmp_path).predictions["good"]}) == []


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ([], [], 0.0),
        ([(BOX, 0)], [(BOX, 0)], 0.0),
        ([(BOX, 0)], [(BOX, 1)], 1.0),
        ([(BOX, 0)], [], 1.0),
        ([(BOX, 0), (BOX, 0)], [(BOX, 0)], 1 / 3),  # a partner is used once
        ([(BOX, 0)], [([200.0, 200.0, 250.0, 250.0], 0)], 1.0),
    ],
)
def test_share_without_partner(one: list, other: list, share: float) -> None:
    sides = [detections_of([box for box, _ in side], [0.9] * len(side), [c for _, c in side]) for side in (one, other)]
    assert share_without_partner(*sides) == pytest.approx(share)
    assert share_without_partner(*sides[::-1]) == pytest.approx(share)


def test_names_cannot_break_out_of_the_page_s_data(tmp_path: Path) -> None:
    page = to_html(make_run(tmp_path))
    data = page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    assert json.loads(data)["report"]["results"][2]["name"] == HOSTILE_NAME


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    reason = missing_browser()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("page")
    files = write_report(make_run(folder), folder / "report")
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(files.page)
        opened.wait_for("return document.querySelectorAll('#scatter .point').length")
        yield opened


def names_shown(browser: Browser, table: str = "table") -> list[str]:
    found: list[str] = browser.run(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].map(row => row.dataset.name)", table
    )
    return found


def set_filter(browser: Browser, text: str) -> None:
    browser.run(
        "const box = document.getElementById('filter'); box.value = arguments[0];box.dispatchEvent(new Event('input'))",
        text,
    )


def click_heading(browser: Browser, title: str, table: str = "table") -> None:
    browser.run(
        "[...document.querySelectorAll(`#${arguments[1]} th`)].find(cell => cell.textContent === arguments[0]).click()",
        title,
        table,
    )


def test_the_page_needs_nothing_from_elsewhere(browser: Browser) -> None:
    assert browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert "No other candidate beats these" in browser.run("return document.getElementById('summary').textContent")
    assert browser.run("return document.getElementById('command').textContent").startswith("boxwright bench a.onnx")


def test_the_table_sorts(browser: Browser) -> None:
    assert names_shown(browser) == ["fast", "good", HOSTILE_NAME, "broken"]  # by FPS, the missing last
    click_heading(browser, "AP")
    assert names_shown(browser) == ["good", HOSTILE_NAME, "fast", "broken"]
    click_heading(browser, "AP")
    assert names_shown(browser) == ["fast", HOSTILE_NAME, "good", "broken"]
    click_heading(browser, "candidate")
    assert names_shown(browser) == sorted(["fast", "good", HOSTILE_NAME, "broken"])
    assert browser.run("return document.querySelector('th[aria-sort]').textContent") == "candidate"
    click_heading(browser, "FPS")


def test_the_other_tables_sort_too(browser: Browser) -> None:
    assert names_shown(browser, "accuracy") == ["good", HOSTILE_NAME, "fast"]  # by AP; what has none is not there
    click_heading(browser, "candidate", "accuracy")
    assert names_shown(browser, "accuracy") == sorted(["fast", "good", HOSTILE_NAME])
    assert names_shown(browser, "classes") == ["cat"]
    cells = "return [...document.querySelectorAll('#classes td')].map(cell => cell.textContent)"
    assert browser.run(cells) == ["cat", "3", "0.250", "0.400", "0.300"]


def test_the_cells_say_how_sure_they_are(browser: Browser) -> None:
    title = "return document.querySelector('#table tr[data-name=good]').cells[arguments[0]].title"
    titles = [browser.run(title, index) for index in range(10)]
    assert "95 %: 24.00 to 36.00 ms" in titles  # of p99


def test_the_filter_holds_for_tables_and_charts(browser: Browser) -> None:
    set_filter(browser, "OPENVINO int8")
    assert names_shown(browser) == names_shown(browser, "accuracy") == ["fast"]
    assert browser.run("return document.getElementById('shown').textContent") == "1 of 4"
    assert browser.wait_for("return document.querySelectorAll('#scatter .point').length === 1")
    set_filter(browser, "crashed")
    assert names_shown(browser) == ["broken"]
    assert "signal 11" in browser.run("return document.querySelector('#table tbody').textContent")
    set_filter(browser, "no such thing")
    assert names_shown(browser) == []
    set_filter(browser, "")
    assert len(names_shown(browser)) == 4
    assert browser.wait_for("return document.querySelectorAll('#scatter .point').length === 3")


def test_hovering_a_point_shows_its_numbers(browser: Browser) -> None:
    script = """
        const chart = document.getElementById('scatter');
        chart.scrollIntoView({block: 'center'});
        const index = chart.data.findIndex(trace => trace.name === 'good');
        const box = chart.getBoundingClientRect();
        const {_offset: left} = chart._fullLayout.xaxis, {_offset: top} = chart._fullLayout.yaxis;
        return [box.left + left + chart._fullLayout.xaxis.l2p(chart.data[index].x[0]),
                box.top + top + chart._fullLayout.yaxis.l2p(chart.data[index].y[0])];
    """
    x, y = browser.run(script)
    browser.move_mouse(x, y)
    text = browser.wait_for("return document.querySelector('#scatter .hoverlayer').textContent")
    assert "good" in text and "AP 0.4000" in text and "50.0 FPS" in text and "p99 30.00 ms" in text


def test_charts_and_gallery_show_every_candidate(browser: Browser) -> None:
    legend = "return [...document.querySelectorAll('#distribution .legendtext')].map(text => text.textContent)"
    assert browser.run(legend) == ["fast", "good", HOSTILE_NAME]
    stages = browser.run("return document.getElementById('stages').data.map(trace => [trace.name, trace.x.length])")
    assert stages == [["read", 3], ["preprocess", 3], ["infer", 3], ["postprocess", 3]]
    options = browser.run("return [...document.getElementById('curve-class').options].map(option => option.value)")
    assert options == ["mean", "cat", "dog"]  # the third class has no box
    confusion = browser.run("return document.getElementById('confusion').data[0].customdata")
    assert confusion == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]  # "fast" misses the dog
    captions = browser.run("return [...document.querySelectorAll('#gallery figcaption')].map(c => c.textContent)")
    assert captions == ["annotated: 1", "fast: 0", "good: 1", f"{HOSTILE_NAME}: 1"]
    assert browser.run("return document.querySelectorAll('#gallery svg image').length") == 4


def test_of_many_pairs_neighbours_and_equals_are_told(tmp_path: Path) -> None:
    rows = [result_of(f"m{index}", p50_ms=10.0 * 1.2**index, map_=0.3) for index in range(6)]
    report = report_of(*rows, result_of("twin", p50_ms=10.1, map_=0.3))
    lines = pair_lines(report)
    assert len(report.pairs) == 21
    assert any(line.startswith("m0 and twin: equal within the noise") for line in lines)
    assert any(line.startswith("m4 and m5: the first is faster") for line in lines)
    assert not any(line.startswith("m0 and m5") for line in lines)
    assert lines[-1] == f"the other {21 - (len(lines) - 1)} pairs differ, and are in the JSON"


@pytest.mark.parametrize(
    ("low", "high", "verdict", "words"),
    [
        (0.97, 1.04, "equal", "equal within the noise"),
        (0.02, 3.0, "equal", "cannot be told apart"),
        (0.0, 3.0, "equal", "cannot be told apart"),
        (0.5, 0.9, "faster", "the first is faster"),
    ],
)
def test_a_verdict_in_words(low: float, high: float, verdict: Verdict, words: str) -> None:
    assert Comparison(ratio=0.7, low=low, high=high, verdict=verdict).in_words().startswith(words)


def test_many_candidates_fit_a_narrow_page(tmp_path: Path) -> None:
    """Names in the chart cover neither each other nor the edge, and every bar has a name."""
    reason = missing_browser()
    if reason:
        pytest.skip(reason)
    names = [f"a-model-of-some-name.onnx engine-{index}" for index in range(9)]
    rows = [result_of(name, p50_ms=10.0 * 1.35**index, map_=0.3 + 0.01 * index) for index, name in enumerate(names)]
    files = write_report(make_run(tmp_path)._replace(report=report_of(*rows)), tmp_path / "report")
    with open_browser(tmp_path / "profile", width=500) as narrow:
        narrow.open(files.page)
        narrow.wait_for("return document.querySelectorAll('#scatter .point').length === 9")
        assert narrow.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        boxes = narrow.run("""return [...document.querySelectorAll('#scatter .textpoint text')].map(
            text => text.getBoundingClientRect()).map(box => [box.left, box.top, box.right, box.bottom])""")
        assert 2 <= len(boxes) <= 9
        assert all(box[0] >= 0 and box[2] <= 500 for box in boxes)
        for index, one in enumerate(boxes):
            for other in boxes[:index]:
                assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        ticks = "return [...document.querySelectorAll('#stages .ytick text')].map(text => text.textContent)"
        assert narrow.run(ticks) == [f"{name[:10]}…{name[-9:]}" for name in reversed(names)]
        legend = "return document.querySelectorAll('#distribution .legendtext').length"
        assert narrow.run(legend) == 9
