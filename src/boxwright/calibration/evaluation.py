"""Running a variant on the choice images: what it finds, how that agrees with the float model, how fast it is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from boxwright.bench.accuracy import match_classes, to_dataset_classes
from boxwright.calibration.agreement import Agreement, compare_detections
from boxwright.calibration.candidate import Quantizer
from boxwright.calibration.choice import ChoiceFold, ChoiceSet
from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.paired_map import MatchedDetections, PairedDifference, compare, match_detections
from boxwright.calibration.sessions import Tensors
from boxwright.calibration.stopwatch import measure_in_turns
from boxwright.calibration.variant import Variant
from boxwright.core.detections import Detections
from boxwright.runtimes.backend import Backend, open_backend
from boxwright.runtimes.postprocess import Postprocessor

_SCORE_THRESHOLD = 0.001


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured of a variant.

    Attributes:
        agreement: with the float model's detections.
        difference: in mAP to the float model; None where it was not asked for.
        latency_ms: of the engine alone, an image, up to the raw heads; None where it was not asked for.
    """

    agreement: Agreement
    difference: PairedDifference | None = None
    latency_ms: float | None = None


class Evaluator:
    """Evaluates variants of one model on one choice set.

    Args:
        quantizer: makes the quantized forms.
        model: the float model.
        num_threads: of the CPU; 0 leaves it to the engine.
    """

    def __init__(self, model: FloatModel, quantizer: Quantizer, *, num_threads: int = 0) -> None:
        self.model = model
        self._quantizer = quantizer
        self._num_threads = num_threads
        self._postprocess = Postprocessor(
            replace(model.manifest, stage="raw"),
            score_threshold=_SCORE_THRESHOLD,
            iou_threshold=model.manifest.iou_threshold,
        )
        self._references: dict[tuple[str, int], list[Detections]] = {}
        self._matched: dict[tuple[str, int], MatchedDetections] = {}
        self._float_ms: dict[str, float] = {}

    def evaluate(
        self, variant: Variant, choice: ChoiceSet, *, with_map: bool = False, with_latency: bool = False
    ) -> Evaluation:
        """Measure a variant.

        Args:
            variant: to measure.
            choice: the images.
            with_map: whether the difference in mAP is wanted.
            with_latency: whether the time is.
        """
        found: list[Detections] = []
        latency_ms = None
        for index, fold in enumerate(choice.folds):
            with self.opened(variant, fold.leave_out) as backend:
                found += self._detect(backend, fold)
                if with_latency and index == 0:
                    latency_ms = self._time(backend, variant, fold.batches[0].inputs())
        reference = self._reference(variant.engine, choice)
        difference = None
        if with_map:
            key = (variant.engine, len(choice.samples))
            if key not in self._matched:
                self._matched[key] = self._match(choice, reference)
            difference = compare(self._matched[key], self._match(choice, found))
        return Evaluation(agreement=compare_detections(reference, found), difference=difference, latency_ms=latency_ms)

    def time_in_turns(self, variants: Sequence[Variant], choice: ChoiceSet, *, rounds: int) -> list[float]:
        """Milliseconds an image of several variants, all opened at once and taking turns."""
        inputs = choice.folds[0].batches[0].inputs()
        with _all(self.opened(variant, None) for variant in variants) as backends:
            times = measure_in_turns(backends, inputs, rounds=rounds)
        return [milliseconds / len(inputs["images"]) for milliseconds in times]

    @contextmanager
    def opened(self, variant: Variant, leave_out: int | None) -> Iterator[Backend]:
        """The variant up to its raw heads, in its engine."""
        if variant.recipe is None:
            proto = self.model.raw_proto
        else:
            proto = self._quantizer.build(variant.recipe, raw=True, leave_out=leave_out)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "raw.onnx"
            path.write_bytes(proto.SerializeToString())
            with open_backend(
                path, backend=variant.engine, precision=variant.precision, num_threads=self._num_threads
            ) as backend:
                yield backend

    def _detect(self, backend: Backend, fold: ChoiceFold) -> list[Detections]:
        found: list[Detections] = []
        for batch in fold.batches:
            outputs = backend.run(_fitting(backend, batch.inputs()))
            found += self._postprocess(_finite(outputs), batch.transforms)
        return found

    def _reference(self, engine: str, choice: ChoiceSet) -> list[Detections]:
        """What the float model finds, on that engine."""
        key = (engine, len(choice.samples))
        if key not in self._references:
            with self.opened(Variant(engine=engine), None) as backend:
                self._references[key] = [item for fold in choice.folds for item in self._detect(backend, fold)]
        return self._references[key]

    def _match(self, choice: ChoiceSet, found: Sequence[Detections]) -> MatchedDetections:
        dataset = choice.dataset
        class_map = match_classes(self.model.manifest.class_names, dataset)
        mapped = [to_dataset_classes(item, class_map) for item in found]
        return match_detections(choice.samples, mapped, num_classes=len(dataset.class_names))

    def _time(self, backend: Backend, variant: Variant, inputs: Tensors) -> float:
        """Milliseconds an image, from the ratio to the float model on this engine at this moment."""
        images = len(inputs["images"])
        inputs = _fitting(backend, inputs)
        with self.opened(Variant(engine=variant.engine), None) as reference:
            own, float_ms = measure_in_turns([backend, reference], inputs)
        self._float_ms.setdefault(variant.engine, float_ms)
        return own / float_ms * self._float_ms[variant.engine] / images


def _fitting(backend: Backend, inputs: Tensors) -> Tensors:
    """The inputs that a model declares, in its types."""
    return {
        name: array.astype(backend.inputs[name].dtype, copy=False)
        for name, array in inputs.items()
        if name in backend.inputs
    }


def _finite(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Raw heads as they are; kept apart so that a broken variant finds nothing rather than failing."""
    return {name: np.nan_to_num(array) if array.dtype.kind == "f" else array for name, array in outputs.items()}


@contextmanager
def _all(contexts: Iterator[object]) -> Iterator[list[Backend]]:
    import contextlib

    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(context) for context in contexts]  # type: ignore[arg-type]
