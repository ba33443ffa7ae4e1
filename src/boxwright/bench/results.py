"""What a benchmark found; docs/bench.md describes the JSON document of the same names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from boxwright.bench.accuracy import AccuracyResult
from boxwright.bench.noise import Comparison, Verdict
from boxwright.core.machine import Machine

SCHEMA_VERSION = 1
# measured: all that was asked for; unsupported: the engine cannot do this, and says so; failed: it could not be opened
# or stopped with an error; crashed: its process ended; timeout: it took longer than it was given; interrupted: the
# user ended the run first.
Status = Literal["measured", "unsupported", "failed", "crashed", "timeout", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time an image, from the decoded image to its detections, in milliseconds.

    Attributes:
        p50: the median over all images of all rounds.
        p90: percentile.
        p95: percentile.
        p99: percentile.
        mean: over all images of all rounds.
        p50_low: end of the 95 % interval of the median, from launches drawn with replacement.
        p50_high: the other end.
        p90_low: likewise of the other percentiles.
        p90_high: likewise.
        p95_low: likewise.
        p95_high: likewise.
        p99_low: likewise.
        p99_high: likewise.
        mean_low: likewise of the mean.
        mean_high: likewise.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    p50_low: float
    p50_high: float
    p90_low: float
    p90_high: float
    p95_low: float
    p95_high: float
    p99_low: float
    p99_high: float
    mean_low: float
    mean_high: float


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Medians of the steps that the latency consists of, in milliseconds, and of reading the image before it.

    Attributes:
        preprocess: from the image to the network's input.
        infer: the network, with what its file does itself of decoding and NMS.
        postprocess: from its outputs to detections.
        read: reading and decoding the image file; not part of the latency.
    """

    preprocess: float
    infer: float
    postprocess: float
    read: float | None = None


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The most images a second that were found by trying batch sizes and numbers of streams.

    Attributes:
        fps: images a second, end to end.
        batch: images given at once.
        streams: detectors that work side by side.
    """

    fps: float
    batch: int
    streams: int


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The thresholds that a number was measured with."""

    conf: float
    iou: float
    max_det: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """One candidate: a model file on an engine in a precision.

    Numbers that were not measured are None; `reason` says why where the status is not `measured`.

    Attributes:
        name: tells the candidates of a report apart.
        model: path as it was given.
        backend: engine.
        device: that it ran on.
        precision: of the arithmetic.
        num_threads: of the CPU; 0 where it was left to the engine.
        status: whether it was measured.
        reason: one line.
        model_sha256: of the file that was measured.
        variant: of the detector.
        imgsz: height and width of the network's input.
        map: COCO's AP, 0 to 1, the same as in `accuracy`.
        map50: likewise.
        accuracy: all that was measured of it.
        accuracy_thresholds: that it was measured with.
        latency_ms: end to end at batch 1.
        latency_thresholds: that it was measured with.
        fps: images a second end to end at batch 1: 1000 / p50.
        stages_ms: what the latency consists of.
        overhead: the part of the latency that no stage accounts for; what measuring costs.
        raw_engine_ms: median of the bare engine on the graph up to the raw heads, on the same inputs, in the same
            precision and with as many threads.
        raw_engine_note: why that is None.
        end_to_end_ratio: end to end over bare engine, median of the ratios of the rounds.
        throughput: at the best batch and number of streams.
        load_s: opening the file, median over the launches.
        first_inference_ms: the first image after that, median over the launches.
        peak_rss_mb: the most memory that a process which opens the file and detects in images takes.
        gpu_memory_mb: that a process holds after its warm-up, on NVIDIA.
        size_mb: of the file or folder, 1 MB = 10^6 bytes.
        rounds_ms: for each launch the median latency of each round.
        quantiles_ms: the latency at probabilities 0, 0.02 ... 1.
        is_noisy: whether the machine disturbed the measurement.
        notes: what a reader should know.
    """

    name: str
    model: str
    backend: str
    device: str
    precision: str
    num_threads: int
    status: Status
    reason: str | None = None
    model_sha256: str | None = None
    variant: str | None = None
    imgsz: tuple[int, int] | None = None
    map: float | None = None
    map50: float | None = None
    accuracy: AccuracyResult | None = None
    accuracy_thresholds: Thresholds | None = None
    latency_ms: Latency | None = None
    latency_thresholds: Thresholds | None = None
    fps: float | None = None
    stages_ms: Stages | None = None
    overhead: float | None = None
    raw_engine_ms: float | None = None
    raw_engine_note: str | None = None
    end_to_end_ratio: float | None = None
    throughput: Throughput | None = None
    load_s: float | None = None
    first_inference_ms: float | None = None
    peak_rss_mb: float | None = None
    gpu_memory_mb: float | None = None
    size_mb: float | None = None
    rounds_ms: tuple[tuple[float, ...], ...] = ()
    quantiles_ms: tuple[float, ...] = ()
    is_noisy: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pair:
    """How the latencies of two candidates of a report compare; `first` is the one listed earlier."""

    first: str
    second: str
    comparison: Comparison


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """A candidate that no other beats in both speed and mAP.

    Attributes:
        name: of the candidate.
        model: path as it was given.
        backend: engine.
        precision: of the arithmetic.
        fps: end to end at batch 1.
        map: COCO's AP.
    """

    name: str
    model: str
    backend: str
    precision: str
    fps: float
    map: float


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """The data that was measured on.

    Attributes:
        path: folder.
        split: of it.
        layout: of its files.
        num_images: in the split.
        num_boxes: of the classes that were measured on.
        num_classes: likewise.
        sha256: of the images, boxes and class names.
        chosen_classes: names of the only classes whose boxes were measured on; empty for all.
    """

    path: str
    split: str
    layout: str
    num_images: int
    num_boxes: int
    num_classes: int
    sha256: str
    chosen_classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a benchmark measures.

    Attributes:
        accuracy_conf: score threshold for mAP.
        latency_conf: score threshold for the latency.
        iou: of the NMS in both.
        num_threads: of the CPU; 0 leaves it to the engine.
        cores: that the processes are pinned to; empty for all.
        min_launches: fresh processes of each candidate, at least.
        max_launches: at most, while intervals are too wide to tell candidates apart.
        rounds: in a launch, at most; many short ones, so that whoever is compared ran almost at the same time.
        num_latency_images: different images a round goes through, at most.
        block_s: how long a candidate's turn in a round should take, to which it fits the number of images (at least 2).
        time_limit_s: of each candidate, in all.
        with_raw_engine: whether the bare engine is measured too.
        with_throughput: whether the best batch and number of streams are searched for.
        trial_s: how long each trial of that search lasts; the last one twice as long.
        streams: numbers of streams to try; empty for powers of two up to the number of cores.
        with_accuracy: whether mAP is measured.
    """

    accuracy_conf: float = 0.001
    latency_conf: float = 0.25
    iou: float = 0.7
    num_threads: int = 0
    cores: tuple[int, ...] = ()
    min_launches: int = 3
    max_launches: int = 8
    rounds: int = 20
    num_latency_images: int = 16
    block_s: float = 0.05
    time_limit_s: float = 900.0
    with_raw_engine: bool = True
    with_throughput: bool = True
    trial_s: float = 1.5
    streams: tuple[int, ...] = ()
    with_accuracy: bool = True


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What state the machine was in; None where it does not say.

    Attributes:
        load_average: processes that wanted to run in the last minute.
        cpu_mhz: mean over the cores.
        governor: of the CPU's frequency.
        temperature_c: the hottest zone.
        throttle_count: how often the CPU has been slowed down for its heat, or a Jetson for its current, since the
            start.
        throttled_by: what holds clocks down now: cooling devices of the kernel, and NVIDIA's reasons.
        power_mode: a Jetson's (nvpmodel) or a laptop's.
        gpu_mhz: of an NVIDIA GPU, also a Jetson's.
        gpu_temperature_c: of an NVIDIA GPU.
        steal_s: time that the host of a virtual machine gave to others, since the start.
    """

    load_average: float | None = None
    cpu_mhz: float | None = None
    governor: str | None = None
    temperature_c: float | None = None
    throttle_count: int | None = None
    throttled_by: tuple[str, ...] = ()
    power_mode: str | None = None
    gpu_mhz: float | None = None
    gpu_temperature_c: float | None = None
    steal_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All that a benchmark found.

    Attributes:
        schema_version: of this document.
        boxwright_version: that measured.
        created: date and time, UTC, ISO 8601.
        command: as it was typed.
        settings: how it was measured.
        data: on which data.
        results: a row for each candidate, in the order they were given.
        pareto: candidates that no other beats in both fps and mAP, by rising mAP.
        pairs: of the measured candidates, how their latencies compare.
        machine: that measured.
        software: versions of the packages that took part.
        conditions_before: of the machine.
        conditions_after: of the machine.
        is_noisy: whether something else disturbed the measurement.
        notes: what a reader should know of the whole.
        is_complete: whether nothing was cut short.
    """

    boxwright_version: str
    created: str
    command: str
    settings: Settings
    data: DataSummary
    results: tuple[Result, ...]
    pareto: tuple[ParetoPoint, ...]
    pairs: tuple[Pair, ...]
    machine: Machine
    software: dict[str, str]
    conditions_before: Conditions
    conditions_after: Conditions
    is_noisy: bool = False
    notes: tuple[str, ...] = ()
    is_complete: bool = True
    schema_version: int = SCHEMA_VERSION


def short_name(row: Result) -> str:
    """The name, less the precision and engine that a table or picture says beside it anyway."""
    return row.name.removesuffix(f" {row.precision}").removesuffix(f" {row.backend}")


def verdict_between(report: BenchReport, first: str, second: str) -> Verdict | None:
    """Of the first named candidate against the second; None where they were not both measured."""
    opposite: dict[Verdict, Verdict] = {"equal": "equal", "faster": "slower", "slower": "faster"}
    for pair in report.pairs:
        if (pair.first, pair.second) == (first, second):
            return pair.comparison.verdict
        if (pair.first, pair.second) == (second, first):
            return opposite[pair.comparison.verdict]
    return None
