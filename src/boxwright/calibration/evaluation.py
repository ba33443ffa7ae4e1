"""Running a variant on the choice images: what it finds, how that agrees with the float model, how fast it is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from boxwright.bench.accuracy import match_classes, to_dataset_classes
from boxwright.calibration.agreement import Agreement, compare_detections
from boxwright.calibration.candidate import Quantizer
from boxwright.calibration.choice import ChoiceFold, ChoiceSet, PreparedBatch
from boxwright.calibration.executed import executed_layers
from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.head_noise import HeadReader, SureCandidates, total_noise
from boxwright.calibration.paired_map import MatchedDetections, PairedDifference, compare, match_detections
from boxwright.calibration.sessions import Tensors, open_session
from boxwright.calibration.stopwatch import blocks_in_turns, measure_in_turns
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
        head_noise: mean squared error of boxes and relative scores before NMS, see `head_noise`; None where unknown.
        difference: in mAP to the float model; None where it was not asked for.
        latency_ms: of the engine alone, an image, up to the raw heads; None where it was not asked for.
        int8_share: of the multiplications up to the raw heads, those that the engine executes on integers; None where
            it was not asked for, or the engine does not show its graph.
    """

    agreement: Agreement
    head_noise: float | None = None
    difference: PairedDifference | None = None
    latency_ms: float | None = None
    int8_share: float | None = None


class Evaluator:
    """Evaluates variants of one model on one choice set.

    Args:
        quantizer: makes the quantized forms.
        model: the float model.
        macs: multiplications of each layer.
        num_threads: of the CPU; 0 leaves it to the engine.
    """

    def __init__(
        self, model: FloatModel, quantizer: Quantizer, *, macs: Mapping[str, int], num_threads: int = 0
    ) -> None:
        self.model = model
        self._quantizer = quantizer
        self._macs = macs
        self._num_threads = num_threads
        self._postprocess = Postprocessor(
            replace(model.manifest, stage="raw"),
            score_threshold=_SCORE_THRESHOLD,
            iou_threshold=model.manifest.iou_threshold,
        )
        self._heads = HeadReader(model.manifest)
        self._references: dict[tuple[str, int], tuple[list[Detections], list[SureCandidates]]] = {}
        self._matched: dict[tuple[str, int], MatchedDetections] = {}

    def evaluate(
        self,
        variant: Variant,
        choice: ChoiceSet,
        *,
        with_map: bool = False,
        with_latency: bool = False,
        is_simulated: bool = False,
        float_ms: float | None = None,
    ) -> Evaluation:
        """Measure a variant.

        Args:
            variant: to measure.
            choice: the images.
            with_map: whether the difference in mAP is wanted.
            with_latency: whether the time is, and the share of the work that the engine executes on integers.
            is_simulated: the quantized model is run as it is written, rounding and then computing in float, rather than
                by its engine, which takes seconds to make its own graph of it; not for forms of another precision.
            float_ms: what the float model took in the measurement that this one is to be compared with: times are
                ratios to the float model, times this; None for the float model itself.
        """
        open_form = self._simulated if is_simulated else self.opened
        reference, candidates = self._reference(variant.engine, choice, is_simulated=is_simulated)
        found: list[Detections] = []
        errors: list[tuple[float, float]] = []
        latency_ms = None
        for index, fold in enumerate(choice.folds):
            with open_form(variant, fold.leave_out) as backend:
                for outputs, batch in self._run(backend, fold):
                    found += self._postprocess(outputs, batch.transforms)
                    for row in range(len(batch.samples)):
                        errors.append(self._heads.errors(candidates[len(errors)], outputs, row))
                if with_latency and index == 0 and not isinstance(backend, _Simulation):
                    latency_ms = self._time(backend, variant, fold.batches[0].inputs(), float_ms)
        int8_share = self._int8_share(variant, choice.folds[0].leave_out) if with_latency else None
        difference = None
        if with_map:
            key = (variant.engine, len(choice.samples))
            if key not in self._matched:
                self._matched[key] = self._match(choice, reference)
            difference = compare(self._matched[key], self._match(choice, found))
        return Evaluation(
            agreement=compare_detections(reference, found),
            head_noise=total_noise(errors),
            difference=difference,
            latency_ms=latency_ms,
            int8_share=int8_share,
        )

    def time_in_turns(self, variants: Sequence[Variant], choice: ChoiceSet, *, rounds: int) -> list[list[float]]:
        """Milliseconds an image of several variants, round by round, all opened at once and taking turns."""
        inputs = choice.folds[0].batches[0].inputs()
        with _all(self.opened(variant, None) for variant in variants) as backends:
            times = blocks_in_turns(backends, inputs, rounds=rounds)
        return [[milliseconds / len(inputs["images"]) for milliseconds in blocks] for blocks in times]

    def _int8_share(self, variant: Variant, leave_out: int | None) -> float | None:
        """Of the graph that the engine makes of a variant."""
        if variant.recipe is None:
            return None
        proto = self._quantizer.build(variant.recipe, raw=True, leave_out=leave_out)
        executed = executed_layers(variant.engine, proto, self.model, self._macs, precision=variant.precision)
        return None if executed is None else executed.int8_share

    @contextmanager
    def _simulated(self, variant: Variant, leave_out: int | None) -> Iterator[Backend | _Simulation]:
        recipe = variant.recipe
        proto = self.model.raw_proto
        if recipe is not None:
            proto = self._quantizer.build(recipe, raw=True, leave_out=leave_out)
        yield _Simulation(proto, num_threads=self._num_threads)

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

    def _run(
        self, backend: Backend | _Simulation, fold: ChoiceFold
    ) -> Iterator[tuple[dict[str, np.ndarray], PreparedBatch]]:
        """The raw heads of each batch."""
        for batch in fold.batches:
            yield _finite(backend.run(_fitting(backend, batch.inputs()))), batch

    def _reference(
        self, engine: str, choice: ChoiceSet, *, is_simulated: bool
    ) -> tuple[list[Detections], list[SureCandidates]]:
        """What the float model finds, on that engine, after NMS and before."""
        key = ("" if is_simulated else engine, len(choice.samples))
        if key not in self._references:
            open_form = self._simulated if is_simulated else self.opened
            found: list[Detections] = []
            candidates: list[SureCandidates] = []
            with open_form(Variant(engine=engine), None) as backend:
                for fold in choice.folds:
                    for outputs, batch in self._run(backend, fold):
                        found += self._postprocess(outputs, batch.transforms)
                        candidates += [self._heads.candidates(outputs, row) for row in range(len(batch.samples))]
            self._references[key] = found, candidates
        return self._references[key]

    def _match(self, choice: ChoiceSet, found: Sequence[Detections]) -> MatchedDetections:
        dataset = choice.dataset
        class_map = match_classes(self.model.manifest.class_names, dataset)
        mapped = [to_dataset_classes(item, class_map) for item in found]
        return match_detections(choice.samples, mapped, num_classes=len(dataset.class_names))

    def _time(self, backend: Backend, variant: Variant, inputs: Tensors, float_ms: float | None) -> float:
        """Milliseconds an image, from the ratio to the float model on this engine at this moment."""
        images = len(inputs["images"])
        inputs = _fitting(backend, inputs)
        with self.opened(Variant(engine=variant.engine), None) as reference:
            own, reference_ms = measure_in_turns([backend, reference], inputs)
        return own / images if float_ms is None else own / reference_ms * float_ms


class _Simulation:
    """A model run node by node."""

    def __init__(self, proto: onnx.ModelProto, *, num_threads: int) -> None:
        self._session = open_session(proto, num_threads=num_threads, optimize=False)
        self._inputs = {item.name for item in self._session.get_inputs()}
        self._outputs = [item.name for item in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {name: array for name, array in inputs.items() if name in self._inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, given), strict=True))


def _fitting(backend: Backend | _Simulation, inputs: Tensors) -> Tensors:
    """The inputs that a model declares, in its types."""
    if isinstance(backend, _Simulation):
        return dict(inputs)
    return {
        name: array.astype(backend.inputs[name].dtype, copy=False)
        for name, array in inputs.items()
        if name in backend.inputs
    }


def _finite(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Raw heads as they are; kept apart so that a broken variant finds nothing rather than failing."""
    return {
        name: np.nan_to_num(array.astype(np.float32, copy=False)) if array.dtype.kind == "f" else array
        for name, array in outputs.items()
    }


@contextmanager
def _all(contexts: Iterator[object]) -> Iterator[list[Backend]]:
    import contextlib

    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(context) for context in contexts]  # type: ignore[arg-type]
