"""How often `bench` calls a candidate equal to itself, and how often it tells 5 % more work apart.

    python benchmarks/noise.py m.onnx --data DIR [--tries 20] [--num-threads 1] [--results noise.jsonl]

In each try three candidates are measured as `boxwright bench` measures: the file, the file again, and the file with 5 %
added to every image. Wanted are 19 of 20 right verdicts of either kind, and an overhead below 1 %. Tries are added to
those in `--results`, so that a shared machine can be measured in portions; the sums at the end are of all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.bench.candidate import Candidate
from boxwright.bench.noise import compare_interleaved
from boxwright.bench.results import BenchReport, Settings, verdict_between
from boxwright.bench.run import run_benchmark
from boxwright.bench.summary import is_precise
from boxwright.core.detections import Detections
from boxwright.core.machine import describe_machine
from boxwright.data import load_dataset
from boxwright.runtimes.detector import Detector

MORE_WORK = 0.05
NUM_RESAMPLED = 400
TARGET_SHARE, TARGET_OVERHEAD = 0.95, 0.01


class SlowerDetector(Detector):
    """Works on for 5 % of the time that an image took."""

    def __call__(self, image: Any) -> Any:
        started = time.perf_counter()
        found: Detections = super().__call__(image)
        finished = time.perf_counter()
        until = finished + MORE_WORK * (finished - started)
        while time.perf_counter() < until:
            pass
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--results", type=Path, help="JSON lines that tries are added to")
    options = parser.parse_args()
    folder = str(Path(__file__).resolve().parent)  # where the candidates' processes find this file
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    machine = describe_machine()
    print(f"{machine.cpu_name}, {machine.num_cores} cores", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        results = options.results or Path(temporary) / "noise.jsonl"
        for _ in range(options.tries):
            entry = measure(options.model, options.data, options.num_threads)
            with results.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
            print(describe(entry), flush=True)
        summarise([json.loads(line) for line in results.read_text().splitlines()])


def measure(model: str, data: str, num_threads: int) -> dict[str, Any]:
    """One try."""
    candidates = [
        Candidate(model=model, num_threads=num_threads, name="a"),
        Candidate(model=model, num_threads=num_threads, name="again"),
        Candidate(model=model, num_threads=num_threads, name="slower", opener="noise:SlowerDetector"),
    ]
    settings = Settings(num_threads=num_threads, with_accuracy=False, with_raw_engine=False, with_throughput=False)
    started = time.monotonic()
    report: BenchReport = run_benchmark(candidates, load_dataset(data, "val"), settings=settings).report
    return {
        "itself": verdict_between(report, "a", "again"),
        "slower": verdict_between(report, "slower", "a"),
        "ratios": {f"{pair.first}/{pair.second}": vars(pair.comparison) for pair in report.pairs},
        "overheads": [row.overhead for row in report.results if row.name != "slower"],
        "launches": len(report.results[0].rounds_ms),
        "is_noisy": report.is_noisy,
        "seconds": time.monotonic() - started,
        "rounds_ms": {row.name: row.rounds_ms for row in report.results},
    }


def describe(entry: dict[str, Any]) -> str:
    ratios = ", ".join(
        f"{pair} {value['ratio']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
        for pair, value in entry["ratios"].items()
    )
    return (
        f"itself {entry['itself']}, with 5 % more {entry['slower']}; {ratios}; {entry['launches']} launches, "
        f"{entry['seconds']:.0f} s" + (", disturbed" if entry["is_noisy"] else "")
    )


def summarise(tries: list[dict[str, Any]]) -> None:
    equal = sum(entry["itself"] == "equal" for entry in tries)
    told_apart = sum(entry["slower"] == "slower" for entry in tries)
    overheads = np.array([value for entry in tries for value in entry["overheads"]])
    print(f"of {len(tries)} tries, {sum(entry['is_noisy'] for entry in tries)} of them disturbed:")
    for text, count in (("equal to itself", equal), ("5 % more work told apart", told_apart)):
        print(f"{text}: {count}, wanted {TARGET_SHARE:.0%}: {_yes_or_no(count >= TARGET_SHARE * len(tries))}")
    print(f"of {NUM_RESAMPLED} tries put together from the launches of these, drawn with replacement: ", end="")
    print("equal to itself {:.1%}, 5 % more work told apart {:.1%}".format(*resample(tries)))
    typical = abs(float(np.median(overheads)))
    print(
        f"overhead of the harness: median {np.median(overheads):.2%} ({overheads.min():.2%} to {overheads.max():.2%}), "
        f"wanted below {TARGET_OVERHEAD:.0%}: {_yes_or_no(typical < TARGET_OVERHEAD)}"
    )


def resample(tries: list[dict[str, Any]]) -> tuple[float, float]:
    """Shares of right verdicts in tries put together from measured launches, ended as `bench` ends them."""
    names = ("a", "again", "slower")
    launches = [rounds for entry in tries for rounds in zip(*(entry["rounds_ms"][name] for name in names), strict=True)]
    random, settings = np.random.default_rng(0), Settings()
    equal, told_apart = 0, 0
    for _ in range(NUM_RESAMPLED):
        drawn = [launches[index] for index in random.integers(0, len(launches), settings.max_launches)]
        for count in range(settings.min_launches, settings.max_launches + 1):
            a, again, slower = (list(rounds) for rounds in zip(*drawn[:count], strict=True))
            if is_precise([dict(enumerate(rounds)) for rounds in (a, again, slower)]):
                break
        equal += compare_interleaved(a, again).verdict == "equal"
        told_apart += compare_interleaved(slower, a).verdict == "slower"
    return equal / NUM_RESAMPLED, told_apart / NUM_RESAMPLED


def _yes_or_no(holds: bool) -> str:
    return "yes" if holds else "NO"


if __name__ == "__main__":
    main()
