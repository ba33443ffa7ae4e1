"""Benchmark reports made up for tests of what is done with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from boxwright.bench.accuracy import AccuracyResult, ClassAccuracy
from boxwright.bench.noise import typical_time
from boxwright.bench.results import BenchReport, Conditions, DataSummary, Latency, Result, Settings, Stages, Thresholds
from boxwright.bench.summary import find_pairs, find_pareto
from boxwright.core.machine import Machine


def accuracy_of(map_: float) -> AccuracyResult:
    return AccuracyResult(
        map=map_,
        map50=min(1.0, map_ * 1.5),
        map75=map_,
        map_small=None,
        map_medium=map_,
        map_large=map_,
        ar=map_,
        ar_1=map_,
        ar_10=map_,
        ar_small=None,
        ar_medium=map_,
        ar_large=map_,
        voc_ap50_area=map_,
        voc_ap50_11point=map_,
        per_class=(ClassAccuracy(name="cat", num_boxes=3, map=map_, map50=map_),),
        num_images=2,
        num_boxes=3,
        num_detections=4,
    )


def result_of(
    name: str, *, p50_ms: float, map_: float, noise: float = 0.01, seed: int = 0, **changes: object
) -> Result:
    """A measured row whose rounds scatter about a median by `noise`."""
    random = np.random.default_rng([seed, *name.encode()])
    rounds = tuple(tuple((p50_ms * np.exp(random.normal(0, noise, 8))).tolist()) for _ in range(5))
    typical = typical_time(rounds)
    fields: dict[str, object] = {
        "name": name,
        "model": f"models/{name}.onnx",
        "backend": "onnxruntime",
        "device": "cpu",
        "precision": "fp32",
        "num_threads": 1,
        "status": "measured",
        "model_sha256": "0" * 64,
        "variant": "cells-test",
        "imgsz": (48, 64),
        "map": map_,
        "map50": accuracy_of(map_).map50,
        "accuracy": accuracy_of(map_),
        "accuracy_thresholds": Thresholds(conf=0.001, iou=0.7, max_det=300),
        "latency_ms": Latency(
            p50=p50_ms,
            p90=p50_ms * 1.1,
            p95=p50_ms * 1.2,
            p99=p50_ms * 1.5,
            mean=p50_ms * 1.02,
            p50_low=min(typical.low, p50_ms),
            p50_high=max(typical.high, p50_ms),
            p90_low=p50_ms,
            p90_high=p50_ms * 1.2,
            p95_low=p50_ms * 1.1,
            p95_high=p50_ms * 1.3,
            p99_low=p50_ms * 1.2,
            p99_high=p50_ms * 1.8,
            mean_low=p50_ms,
            mean_high=p50_ms * 1.04,
        ),
        "latency_thresholds": Thresholds(conf=0.25, iou=0.7, max_det=300),
        "fps": 1e3 / p50_ms,
        "stages_ms": Stages(preprocess=p50_ms * 0.1, infer=p50_ms * 0.8, postprocess=p50_ms * 0.1, read=2.0),
        "overhead": 0.001,
        "raw_engine_ms": p50_ms * 0.8,
        "end_to_end_ratio": 1.25,
        "load_s": 0.2,
        "first_inference_ms": p50_ms * 3,
        "peak_rss_mb": 110.0,
        "size_mb": 3.6,
        "rounds_ms": rounds,
        "quantiles_ms": tuple(np.linspace(p50_ms * 0.9, p50_ms * 1.5, 51).tolist()),
    }
    return Result(**{**fields, **changes})  # type: ignore[arg-type]


def failed(row: Result, status: str = "crashed") -> Result:
    """The same candidate, not measured."""
    bare = Result(
        name=row.name,
        model=row.model,
        backend=row.backend,
        device=row.device,
        precision=row.precision,
        num_threads=row.num_threads,
        status=status,  # type: ignore[arg-type]
        reason="its process ended with signal 11",
    )
    return replace(bare, imgsz=row.imgsz)


def report_of(*results: Result, **changes: object) -> BenchReport:
    fields: dict[str, object] = {
        "boxwright_version": "0.0.0",
        "created": "2026-01-01T12:00:00+00:00",
        "command": "boxwright bench a.onnx b.onnx --data data",
        "settings": Settings(),
        "data": DataSummary(
            path="data/colours", split="val", layout="coco", num_images=2, num_boxes=3, num_classes=1, sha256="d" * 64
        ),
        "results": results,
        "pareto": find_pareto(results),
        "pairs": find_pairs({row.name: dict(enumerate(map(list, row.rounds_ms))) for row in results}),
        "machine": Machine(
            system="Linux 6",
            python="3.11.7",
            architecture="x86_64",
            cpu_name="Test CPU",
            num_cores=2,
            memory_mb=1000,
            cpu_features={"avx2": True, "avx512": False},
            gpus=(),
        ),
        "software": {"python": "3.11.7", "onnxruntime": "1.0"},
        "conditions_before": Conditions(load_average=0.1),
        "conditions_after": Conditions(load_average=1.1, temperature_c=50.0),
    }
    return BenchReport(**{**fields, **changes})  # type: ignore[arg-type]
