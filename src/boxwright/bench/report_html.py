"""A benchmark's report as one HTML page that needs no network: charts, sortable table, gallery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boxwright.bench.confusion import confusion_matrix
from boxwright.bench.gallery import find_disagreements, picture_of
from boxwright.bench.report_markdown import method_lines, pair_lines, summary_sentence, warning_lines
from boxwright.core.codec import to_jsonable
from boxwright.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from boxwright.bench.accuracy import Predictions
    from boxwright.bench.run import BenchRun
    from boxwright.data.dataset import Dataset

Json = dict[str, Any]
_PAGE = Path(__file__).parent / "page"
_MEAN = "mean"


def to_html(run: BenchRun) -> str:
    """The page.

    Raises:
        MissingDependencyError: where the extra `bench` is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependencyError("plotly", extra="bench", needed_for="the report as a page") from error
    # What is put in last is not searched for the places of the others.
    page = (_PAGE / "template.html").read_text(encoding="utf-8")
    page = page.replace("/*STYLE*/", (_PAGE / "style.css").read_text(encoding="utf-8"))
    page = page.replace("/*SCRIPT*/", (_PAGE / "page.js").read_text(encoding="utf-8"))
    before, _, after = page.partition("/*DATA*/")
    middle, _, end = after.partition("/*PLOTLY*/")
    library: str = get_plotlyjs()
    return before + _as_script(page_data(run)) + middle + library.replace("</script", "<\\/script") + end


def page_data(run: BenchRun) -> Json:
    """Everything that the page shows, as JSON's types."""
    report = run.report
    curves = {name: _curves(run, name) for name in run.class_precisions}
    keys = [_MEAN, *dict.fromkeys(key for rows in curves.values() for key in rows if key != _MEAN)]
    pictures = [picture_of(row, run.dataset) for row in find_disagreements(run.predictions)]
    return {
        "report": to_jsonable(report),
        "summary": summary_sentence(report).replace("**", ""),
        "warnings": warning_lines(report),
        "method": method_lines(report),
        "pairs": pair_lines(report),
        "recalls": np.linspace(0, 1, 101).round(2).tolist(),
        "curve_keys": keys,
        "curves": curves,
        "confusion": {name: _confusion(entry, run.dataset) for name, entry in run.predictions.items()},
        "gallery": [picture for picture in pictures if picture is not None],
    }


def _curves(run: BenchRun, name: str) -> dict[str, list[float]]:
    """Precision at 101 recalls: the mean over classes, and each class that has boxes."""
    precisions = run.class_precisions[name]  # (C, 101)
    rows = {
        class_name: precisions[index].round(3).tolist()
        for index, class_name in enumerate(run.dataset.class_names)
        if not np.isnan(precisions[index]).any()
    }
    return {_MEAN: np.nanmean(precisions, axis=0).round(4).tolist(), **rows}


def _confusion(predictions: Predictions, dataset: Dataset) -> Json:
    """The confusion matrix, cut to classes that have boxes."""
    num_classes = len(dataset.class_names)
    counts = confusion_matrix(predictions.samples, predictions.detections, num_classes=num_classes)
    kept = np.flatnonzero(counts[:num_classes].sum(axis=1))
    with_nothing = np.append(kept, num_classes)
    return {
        "labels": [dataset.class_names[index] for index in kept.tolist()],
        "counts": counts[np.ix_(with_nothing, with_nothing)].tolist(),
    }


def _as_script(document: Json) -> str:
    """JSON that may stand inside a script element, whatever names it carries."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
