"""From the measurements of a run to the rows, pairs and front of its report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from boxwright.bench.accuracy import AccuracyResult
from boxwright.bench.candidate import Candidate
from boxwright.bench.candidate_process import CandidateError
from boxwright.bench.noise import Comparison, compare_interleaved, image_statistics, relative_spread, typical_time
from boxwright.bench.results import Latency, Pair, ParetoPoint, Result, Stages, Thresholds, Throughput

Json = dict[str, Any]
# Of a candidate: block medians in milliseconds by the index of the launch, all of equally many rounds.
LaunchRounds = dict[int, list[float]]
# Above this, block times of one launch differ too much for a machine that is left alone.
_NOISY_SPREAD = 0.10
_NUM_QUANTILES = 51
# Intervals up to this half width are narrow enough to end the measurement. Ratios are what candidates are chosen by,
# and they can be known better than times, which move with the machine.
_PRECISE_TIME, _PRECISE_RATIO = 0.03, 0.02
# Candidates whose times differ by more than this are told apart by any measurement.
_FAR_APART = 1.25


def summarise(
    candidate: Candidate,
    *,
    model_sha256: str,
    size_mb: float,
    accuracy: AccuracyResult | None,
    opened: Json | None,
    launches: Sequence[Json],
    latency: Json,
    throughput: Json | None,
    failure: CandidateError | None,
) -> Result:
    """Make the row of a candidate.

    Args:
        candidate: as it was given.
        model_sha256: of its file.
        size_mb: of its file.
        accuracy: where it was measured.
        opened: reply to `Worker.open` of the process that ran over all images.
        launches: its record of each launch that it came through.
        latency: what `latency_fields` makes of those.
        throughput: reply to `Worker.search_throughput`.
        failure: what ended it.
    """
    first = opened or (launches[0] if launches else {})
    return Result(
        name=candidate.name,
        model=candidate.model_shown,
        backend=first.get("backend") or candidate.backend or "auto",
        device=first.get("device") or candidate.device,
        precision=first.get("precision") or candidate.precision,
        num_threads=candidate.num_threads,
        status="measured" if failure is None else failure.status,
        reason=None if failure is None else failure.reason,
        model_sha256=model_sha256,
        variant=first.get("variant"),
        imgsz=tuple(first["imgsz"]) if first.get("imgsz") else None,
        size_mb=size_mb,
        throughput=Throughput(**throughput) if throughput else None,
        **_accuracy_fields(accuracy, opened),
        **latency,
    )


def _accuracy_fields(accuracy: AccuracyResult | None, opened: Json | None) -> Json:
    if accuracy is None or opened is None:
        return {}
    return {
        "map": accuracy.map,
        "map50": accuracy.map50,
        "accuracy": accuracy,
        "accuracy_thresholds": _thresholds(opened),
    }


def latency_fields(launches: Sequence[Json]) -> Json:
    """The fields of a row that its launches say; takes a while, for the intervals.

    Args:
        launches: the candidate's record of each launch that it came through.
    """
    if not launches:
        return {}
    rounds_ms = block_medians(launches)
    every_image = np.concatenate(_series(launches, "end_to_end"))
    latency = _latency(launches)
    raw_engine = _series(launches, "raw_engine")
    is_noisy = relative_spread(rounds_ms) > _NOISY_SPREAD
    return {
        "latency_ms": latency,
        "latency_thresholds": _thresholds(launches[0]),
        "fps": 1e3 / latency.p50,
        "stages_ms": Stages(
            preprocess=float(np.median(np.concatenate(_series(launches, "preprocess")))),
            infer=float(np.median(np.concatenate(_series(launches, "infer")))),
            postprocess=float(np.median(np.concatenate(_series(launches, "postprocess")))),
            read=_median([launch["read_ms"] for launch in launches]),
        ),
        "overhead": _median([[block["overhead"] for launch in launches for block in launch["blocks"]]]),
        "raw_engine_ms": _median(raw_engine),
        "raw_engine_note": launches[0]["raw_engine_note"],
        "end_to_end_ratio": _median([[_engine_ratio(block) for launch in launches for block in launch["blocks"]]]),
        "load_s": _median([[launch["load_s"] for launch in launches]]),
        "first_inference_ms": _median([[launch["first_inference_ms"] for launch in launches]]),
        "peak_rss_mb": _median([[launch["peak_rss_mb"] for launch in launches]]),
        "gpu_memory_mb": _median([[launch["gpu_memory_mb"] for launch in launches]]),
        "rounds_ms": tuple(tuple(row) for row in rounds_ms),
        "quantiles_ms": tuple(np.quantile(every_image, np.linspace(0, 1, _NUM_QUANTILES)).round(4).tolist()),
        "is_noisy": is_noisy,
        "notes": ("its times vary: something else ran on the machine, or its frequency changed",) if is_noisy else (),
    }


def _latency(launches: Sequence[Json]) -> Latency:
    rounds_of_launches = [[block["end_to_end"] for block in launch["blocks"]] for launch in launches]
    if len(launches) > 1:
        blocks = [[time for times in rounds for time in times] for rounds in rounds_of_launches]
    else:
        blocks = rounds_of_launches[0]
    (p50, p90, p95, p99), mean = image_statistics(blocks, [0.5, 0.9, 0.95, 0.99])
    return Latency(
        p50=p50.value,
        p90=p90.value,
        p95=p95.value,
        p99=p99.value,
        mean=mean.value,
        p50_low=p50.low,
        p50_high=p50.high,
        p90_low=p90.low,
        p90_high=p90.high,
        p95_low=p95.low,
        p95_high=p95.high,
        p99_low=p99.low,
        p99_high=p99.high,
        mean_low=mean.low,
        mean_high=mean.high,
    )


def block_medians(launches: Sequence[Json]) -> list[list[float]]:
    """The median latency of each round of each launch, in milliseconds."""
    return [[float(np.median(block["end_to_end"])) for block in launch["blocks"]] for launch in launches]


def _engine_ratio(block: Json) -> float | None:
    """Of one round, in which the machine was in one state."""
    return float(np.median(block["end_to_end"]) / np.median(block["raw_engine"])) if block["raw_engine"] else None


def rounds_by_launch(name: str, launches: Sequence[Mapping[str, Json]]) -> LaunchRounds:
    """Block medians of a candidate in each launch that it came through, by the launch's index."""
    return {index: block_medians([launch[name]])[0] for index, launch in enumerate(launches) if name in launch}


def is_precise(rounds_of_candidates: Sequence[LaunchRounds]) -> bool:
    """Whether all times, and all ratios of times that are close, are known well enough."""
    measured = [rounds for rounds in rounds_of_candidates if rounds]
    for index, rounds in enumerate(measured):
        typical = typical_time(list(rounds.values()))
        if (typical.high - typical.low) / 2 > _PRECISE_TIME * typical.value:
            return False
        for other in measured[:index]:
            comparison = _compare(rounds, other)
            is_close = comparison is not None and 1 / _FAR_APART < comparison.ratio < _FAR_APART
            if comparison is not None and is_close and (comparison.high - comparison.low) / 2 > _PRECISE_RATIO:
                return False
    return True


def find_pairs(rounds_of_candidates: Mapping[str, LaunchRounds]) -> tuple[Pair, ...]:
    """How each two candidates compare, in the launches that both came through."""
    pairs = []
    for (first, rounds), (second, other) in combinations(rounds_of_candidates.items(), 2):
        comparison = _compare(rounds, other)
        if comparison is not None:
            pairs.append(Pair(first=first, second=second, comparison=comparison))
    return tuple(pairs)


def _compare(first: LaunchRounds, second: LaunchRounds) -> Comparison | None:
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    # Candidates that took turns in different groups may have had another number of rounds.
    pairs = [zip(first[index], second[index], strict=False) for index in common]
    one, other = zip(*([list(times) for times in zip(*rounds, strict=True)] for rounds in pairs), strict=True)
    return compare_interleaved(one, other)


def find_pareto(results: Sequence[Result]) -> tuple[ParetoPoint, ...]:
    """The candidates that no other beats in both fps and mAP, by rising mAP."""
    points = [
        ParetoPoint(
            name=result.name,
            model=result.model,
            backend=result.backend,
            precision=result.precision,
            fps=result.fps,
            map=result.map,
        )
        for result in results
        if result.fps is not None and result.map is not None
    ]
    front = [point for point in points if not any(_beats(other, point) for other in points)]
    return tuple(sorted(front, key=lambda point: (point.map, -point.fps)))


def _beats(one: ParetoPoint, other: ParetoPoint) -> bool:
    is_no_worse = one.fps >= other.fps and one.map >= other.map
    return is_no_worse and (one.fps > other.fps or one.map > other.map)


def _thresholds(opened: Json) -> Thresholds:
    return Thresholds(conf=opened["conf"], iou=opened["iou"], max_det=opened["max_det"])


def _series(launches: Sequence[Json], key: str) -> list[list[float]]:
    return [block[key] for launch in launches for block in launch["blocks"]]


def _median(series: Iterable[Sequence[float | None]]) -> float | None:
    values = [value for times in series for value in times if value is not None]
    return float(np.median(values)) if values else None
