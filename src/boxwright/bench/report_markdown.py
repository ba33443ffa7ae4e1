"""A benchmark's report as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from boxwright.bench.results import BenchReport, Conditions, Latency, Result, Stages, Thresholds

_NOTHING = "-"
_MOST_PAIRS = 15
# Heading, and how a result fills it.
_SPEED_COLUMNS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("candidate", lambda row: row.name),
    ("backend", lambda row: row.backend),
    ("precision", lambda row: row.precision),
    ("threads", lambda row: str(row.num_threads) if row.num_threads else "auto"),
    ("AP", lambda row: number(row.map, 4)),
    ("AP50", lambda row: number(row.map50, 4)),
    ("FPS", lambda row: number(row.fps, 1)),
    ("p50 ms (95 %)", lambda row: latency_with_interval(row)),
    ("p90", lambda row: part(row.latency_ms, "p90")),
    ("p95", lambda row: part(row.latency_ms, "p95")),
    ("p99", lambda row: part(row.latency_ms, "p99")),
    ("engine alone ms", lambda row: number(row.raw_engine_ms, 2)),
    ("end to end / engine", lambda row: number(row.end_to_end_ratio, 2)),
)
_ACCURACY_COLUMNS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("candidate", lambda row: row.name),
    ("AP", lambda row: accuracy(row, "map")),
    ("AP50", lambda row: accuracy(row, "map50")),
    ("AP75", lambda row: accuracy(row, "map75")),
    ("AP small", lambda row: accuracy(row, "map_small")),
    ("AP medium", lambda row: accuracy(row, "map_medium")),
    ("AP large", lambda row: accuracy(row, "map_large")),
    ("AR 1", lambda row: accuracy(row, "ar_1")),
    ("AR 10", lambda row: accuracy(row, "ar_10")),
    ("AR 100", lambda row: accuracy(row, "ar")),
    ("VOC AP50 (area)", lambda row: accuracy(row, "voc_ap50_area")),
    ("VOC AP50 (11 points)", lambda row: accuracy(row, "voc_ap50_11point")),
    ("thresholds", lambda row: thresholds(row.accuracy_thresholds)),
)
_COST_COLUMNS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("candidate", lambda row: row.name),
    ("read ms", lambda row: part(row.stages_ms, "read")),
    ("preprocess ms", lambda row: part(row.stages_ms, "preprocess")),
    ("infer ms", lambda row: part(row.stages_ms, "infer")),
    ("postprocess ms", lambda row: part(row.stages_ms, "postprocess")),
    ("load s", lambda row: number(row.load_s, 2)),
    ("first image ms", lambda row: number(row.first_inference_ms, 1)),
    ("peak RSS MB", lambda row: number(row.peak_rss_mb, 0)),
    ("GPU MB", lambda row: number(row.gpu_memory_mb, 0)),
    ("size MB", lambda row: number(row.size_mb, 2)),
    ("most FPS (batch x streams)", lambda row: throughput(row)),
    ("time in no stage", lambda row: _NOTHING if row.overhead is None else f"{row.overhead:.2%}"),
)


def to_markdown(report: BenchReport, *, plot_file: str | None = None) -> str:
    """The report as a Markdown document.

    Args:
        report: of a benchmark.
        plot_file: picture to show, relative to the document.
    """
    sections = [
        f"# Benchmark of {report.created[:10]}",
        summary_sentence(report),
        *_warnings(report),
        f"![FPS against mAP]({plot_file})" if plot_file else "",
        "## Speed and accuracy",
        _table(_SPEED_COLUMNS, report.results),
        "FPS is 1000 / p50, one image at a time, preprocessing and NMS included, reading the image not. *Engine alone* "
        "is the bare engine on the graph up to the raw heads, on the same inputs in the same run.",
        *_not_measured(report),
        *_accuracy(report),
        "## Who is faster",
        *(_bullets(pair_lines(report)) if report.pairs else ["Fewer than two candidates have a latency."]),
        "## What it costs",
        _table(_COST_COLUMNS, report.results),
        "## How it was measured",
        *_bullets(method_lines(report)),
        "```\n" + report.command + "\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def summary_sentence(report: BenchReport) -> str:
    """What was measured on what, and which candidates are worth a choice."""
    front = ", ".join(f"**{point.name}** ({point.fps:.1f} FPS, AP {point.map:.4f})" for point in report.pareto)
    data, count = report.data, len(report.results)
    candidates = "1 candidate" if count == 1 else f"{count} candidates"
    of_classes = f" of {', '.join(data.chosen_classes)} alone" if data.chosen_classes else ""
    return (
        f"{candidates} on {data.path} ({data.split}: {data.num_images} images, {data.num_boxes} "
        f"boxes{of_classes}), on {report.machine.cpu_name}, {report.machine.num_cores} cores. "
        + (
            f"No other candidate beats these in both speed and AP: {front}."
            if front
            else "No candidate has both numbers."
        )
    )


def latency_with_interval(row: Result) -> str:
    """The median with the ends of its interval."""
    if row.latency_ms is None:
        return _NOTHING
    latency = row.latency_ms
    return f"{latency.p50:.2f} ({latency.p50_low:.2f} to {latency.p50_high:.2f})"


def part(numbers: Latency | Stages | None, name: str) -> str:
    """One of those numbers with two digits, a dash where there are none."""
    return number(None if numbers is None else getattr(numbers, name), 2)


def accuracy(row: Result, name: str) -> str:
    """One of the numbers of a candidate's accuracy with four digits, a dash where there is none."""
    return number(None if row.accuracy is None else getattr(row.accuracy, name), 4)


def thresholds(used: Thresholds | None) -> str:
    """What a number was measured with."""
    return _NOTHING if used is None else f"conf {used.conf:g}, IoU {used.iou:g}, {used.max_det} boxes"


def throughput(row: Result) -> str:
    """The best rate and how it was reached."""
    best = row.throughput
    return _NOTHING if best is None else f"{best.fps:.1f} ({best.batch} x {best.streams})"


def number(value: float | None, digits: int) -> str:
    """A number with so many digits after the point, a dash where there is none."""
    return _NOTHING if value is None else f"{value:.{digits}f}"


def _table(columns: Sequence[tuple[str, Callable[[Result], str]]], rows: Sequence[Result]) -> str:
    """A Markdown table; columns in which no row has anything are left out."""
    cells = [[fill(row).replace("|", "\\|") for _, fill in columns] for row in rows]
    used = [index for index in range(len(columns)) if any(line[index] != _NOTHING for line in cells)]
    lines = [[columns[index][0] for index in used], ["---"] * len(used)]
    lines += [[line[index] for index in used] for line in cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def warning_lines(report: BenchReport) -> list[str]:
    """What a reader should know before the numbers."""
    return [*report.notes, *(f"{row.name}: {note}" for row in report.results for note in row.notes)]


def _accuracy(report: BenchReport) -> list[str]:
    if not any(row.accuracy for row in report.results):
        return []
    return ["## Accuracy", _table(_ACCURACY_COLUMNS, [row for row in report.results if row.accuracy])]


def _warnings(report: BenchReport) -> list[str]:
    lines = warning_lines(report)
    if not lines:
        return []
    title = "**This run was disturbed; its times are less sure than usual.**" if report.is_noisy else "**Note.**"
    return [title, *_bullets(lines)]


def _not_measured(report: BenchReport) -> list[str]:
    lines = [f"- **{row.name}**: {row.status}: {row.reason}" for row in report.results if row.status != "measured"]
    return ["Not measured:", "\n".join(lines)] if lines else []


def pair_lines(report: BenchReport) -> list[str]:
    """A sentence on each two candidates with a latency; of many, on neighbours in speed and those that are equal."""
    lines = []
    pairs = report.pairs
    if len(pairs) > _MOST_PAIRS:
        names = [row.name for row in sorted(report.results, key=lambda row: row.fps or 0.0)]
        pairs = tuple(
            pair
            for pair in pairs
            if pair.comparison.verdict == "equal" or abs(names.index(pair.first) - names.index(pair.second)) == 1
        )
    for pair in pairs:
        comparison = pair.comparison
        interval = f"ratio of the times {comparison.ratio:.3f}, {comparison.low:.3f} to {comparison.high:.3f}"
        lines.append(f"{pair.first} and {pair.second}: {comparison.in_words()} ({interval})")
    if len(pairs) < len(report.pairs):
        lines.append(f"the other {len(report.pairs) - len(pairs)} pairs differ, and are in the JSON")
    return lines


def method_lines(report: BenchReport) -> list[str]:
    """How, on what machine and with which software it was measured."""
    settings, machine = report.settings, report.machine
    launches = max((len(row.rounds_ms) for row in report.results), default=0)
    rounds = max((len(launch) for row in report.results for launch in row.rounds_ms), default=0)
    accuracy = f"mAP at conf {settings.accuracy_conf:g}" if settings.with_accuracy else "mAP not measured"
    return [
        f"{launches} launches (a fresh process of every candidate), {rounds} rounds each, in which the "
        f"candidates take turns over the same images",
        f"{accuracy}, latency at conf {settings.latency_conf:g}, NMS at IoU {settings.iou:g}",
        f"cores: {', '.join(map(str, settings.cores)) or 'all'}",
        f"threads: {settings.num_threads or 'as each engine likes'}",
        f"{machine.cpu_name}, {machine.num_cores} cores, {machine.memory_mb or 0} MB, {machine.system}"
        + "".join(f", {gpu.name} (driver {gpu.driver_version})" for gpu in machine.gpus),
        "CPU features: " + (", ".join(name for name, there in machine.cpu_features.items() if there) or "unknown"),
        "before: " + conditions_text(report.conditions_before),
        "after: " + conditions_text(report.conditions_after),
        ", ".join(f"{name} {version}" for name, version in report.software.items()),
        f"data: {report.data.layout} layout, SHA-256 {report.data.sha256[:16]}",
    ]


def conditions_text(conditions: Conditions) -> str:
    """The state of the machine in words, what it does not say left out."""
    parts = (
        ("load {:.2f}", conditions.load_average),
        ("{:.0f} MHz", conditions.cpu_mhz),
        ("governor {}", conditions.governor),
        ("{:.0f} degrees C", conditions.temperature_c),
        ("throttled {} times since it was started", conditions.throttle_count),
        ("held down by {}", ", ".join(conditions.throttled_by) or None),
        ("power mode {}", conditions.power_mode),
        ("GPU {:.0f} MHz", conditions.gpu_mhz),
        ("GPU {:.0f} degrees C", conditions.gpu_temperature_c),
        ("{:.1f} s taken by the host since it was started", conditions.steal_s),
    )
    return ", ".join(text.format(value) for text, value in parts if value is not None) or "the machine says nothing"


def _bullets(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {line}" for line in lines)]
