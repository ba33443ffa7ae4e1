"""What the generations of TensorRT's Python interface do differently when an engine is built: one small class each.

Which class serves is told by the names that the module has, once, in `BuilderApi.of`; nothing else asks for a version.
What names cannot tell, the ONNX parser's limits, is a table in `tensorrt_limits`. `tests/tensorrt_api/signatures.json`
keeps what the real modules have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from boxwright.export.tensorrt_limits import ParserLimits, limits_of

# Takes what the builder is doing, and which step of how many it is at; 0 steps where that is not known.
OnPhase = Callable[[str, int, int], None]
# Whether an ONNX node may compute in half precision, by its name; None where there is none of that name.
MayBeHalf = Callable[[str], bool | None]


_LAYERS_WITH_TYPES = ("CONSTANT", "SHAPE", "CAST", "QUANTIZE", "DEQUANTIZE", "PLUGIN", "PLUGIN_V2", "PLUGIN_V3")


@dataclass(frozen=True, kw_only=True)
class Complaint:
    """Why the parser refused a graph.

    Attributes:
        reason: in its words.
        node_name: of the ONNX node, "" where it is none's.
        op_type: of that node.
    """

    reason: str
    node_name: str = ""
    op_type: str = ""


class WeakTyping:
    """Up to 10: flags allow lower precisions, layers are told to stay in float; the graph's own types are hints."""

    is_strong = False

    def network_flags(self, trt: Any) -> int:
        return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)

    def allow(self, trt: Any, config: Any, precisions: Sequence[str]) -> None:
        """Allow the builder "fp16", "int8" or both beside float."""
        for precision in precisions:
            config.set_flag(getattr(trt.BuilderFlag, precision.upper()))

    def hold_in_float(self, trt: Any, config: Any, network: Any, may_be_half: MayBeHalf) -> int:
        """Keep layers in float, as a condition and not as a wish; returns how many."""
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        allowed = [_may_be_half(layer.name, may_be_half) for layer in layers]
        num_held = 0
        for index, layer in enumerate(layers):
            # What the parser adds for itself without a name goes with the layers around it.
            before = next((known for known in reversed(allowed[:index]) if known is not None), False)
            after = next((known for known in allowed[index + 1 :] if known is not None), False)
            held = not (before and after) if allowed[index] is None else not allowed[index]
            if held and _touches_float(trt, layer):
                layer.precision = trt.DataType.FLOAT
                for output in range(layer.num_outputs):
                    if layer.get_output(output).dtype == trt.DataType.FLOAT:
                        layer.set_output_type(output, trt.DataType.FLOAT)
                num_held += 1
        return num_held


class StrongTyping:
    """From 10 on: the graph's types are the engine's. From 11 on there is nothing else."""

    is_strong = True

    def network_flags(self, trt: Any) -> int:
        flags = trt.NetworkDefinitionCreationFlag
        # Where there still is another kind of network, the batch must be said to be explicit.
        names = [name for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(flags, name)]
        return sum(1 << int(getattr(flags, name)) for name in names)

    def allow(self, trt: Any, config: Any, precisions: Sequence[str]) -> None:
        """Nothing to allow: the graph says it."""

    def hold_in_float(self, trt: Any, config: Any, network: Any, may_be_half: MayBeHalf) -> int:
        """Nothing to hold: the graph says it."""
        return 0


class NodeIndices:
    """8: an error of the parser has the number of its node."""

    def complaint(self, error: Any, nodes: Sequence[tuple[str, str]]) -> Complaint:
        name, op_type = nodes[error.node()] if 0 <= error.node() < len(nodes) else ("", "")
        return Complaint(reason=" ".join(error.desc().split()), node_name=name, op_type=op_type)


class NodeNames:
    """From 10 on it has the name."""

    def complaint(self, error: Any, nodes: Sequence[tuple[str, str]]) -> Complaint:
        return Complaint(
            reason=" ".join(error.desc().split()), node_name=error.node_name(), op_type=error.node_operator()
        )


class NoMonitor:
    """8: the builder says nothing of how far it is."""

    def attach(self, trt: Any, config: Any, on_phase: OnPhase) -> None:
        on_phase("building the engine", 0, 0)


class ProgressMonitor:
    """From 10 on: phases within phases, each of so many steps."""

    def attach(self, trt: Any, config: Any, on_phase: OnPhase) -> None:
        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)
                self._steps: dict[str, int] = {}

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                self._steps[phase_name] = num_steps
                on_phase(phase_name, 0, num_steps)

            def phase_finish(self, phase_name: str) -> None:
                self._steps.pop(phase_name, None)

            def step_complete(self, phase_name: str, step: int) -> bool:
                on_phase(phase_name, step + 1, self._steps.get(phase_name, 0))
                return True  # go on

        config.progress_monitor = Monitor()


class Calibrators:
    """Up to 10: the builder can find the ranges of a float graph by itself, from images."""

    def calibrator(self, trt: Any, batches: Batches) -> Any:
        class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IInt8EntropyCalibrator2.__init__(self)

            def get_batch_size(self) -> int:
                return batches.batch_size

            def get_batch(self, names: Sequence[str]) -> list[int] | None:
                return batches.next_addresses(names)

            def read_calibration_cache(self) -> bytes | None:
                return batches.read_cache()

            def write_calibration_cache(self, cache: Any) -> None:
                batches.write_cache(bytes(cache))

        return Calibrator()


class NoCalibrators:
    """From 11 on a graph must bring its ranges."""

    def calibrator(self, trt: Any, batches: Batches) -> Any:
        raise AssertionError("asked for only where there are calibrators")


class Batches(Protocol):
    """What a calibrator hands to the builder."""

    @property
    def batch_size(self) -> int:
        """Images of each batch."""

    def next_addresses(self, names: Sequence[str]) -> list[int] | None:
        """Where the next batch lies on the device, for each input; None after the last."""

    def read_cache(self) -> bytes | None:
        """Ranges found before."""

    def write_cache(self, content: bytes) -> None:
        """Keep ranges for another build."""


@dataclass(frozen=True, kw_only=True)
class BuilderApi:
    """A generation's ways.

    Attributes:
        trt: the module.
        limits: of its ONNX parser.
        typings: kinds of networks, the preferred one first.
        errors: of the parser.
        progress: of a build.
        calibrators: of INT8.
    """

    trt: Any
    limits: ParserLimits
    typings: tuple[WeakTyping | StrongTyping, ...]
    errors: NodeIndices | NodeNames
    progress: NoMonitor | ProgressMonitor
    calibrators: Calibrators | NoCalibrators

    @classmethod
    def of(cls, trt: Any) -> BuilderApi:
        """The ways of a module `tensorrt`.

        Raises:
            UnsupportedError: where it is older than 8.5.
        """
        strong = (StrongTyping(),) if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") else ()
        weak = (WeakTyping(),) if hasattr(trt.BuilderFlag, "FP16") else ()
        return cls(
            trt=trt,
            limits=limits_of(trt.__version__),
            typings=(*strong, *weak),
            errors=NodeNames() if hasattr(trt.ParserError, "node_name") else NodeIndices(),
            progress=ProgressMonitor() if hasattr(trt, "IProgressMonitor") else NoMonitor(),
            calibrators=Calibrators() if hasattr(trt, "IInt8EntropyCalibrator2") else NoCalibrators(),
        )

    @property
    def has_calibrators(self) -> bool:
        return isinstance(self.calibrators, Calibrators)

    def typing(self, *, needs_weak: bool) -> WeakTyping | StrongTyping:
        """The kind of network to build: the preferred one, or a weakly typed one where there still is that."""
        return self.typings[-1] if needs_weak else self.typings[0]

    def complaints(self, parser: Any, nodes: Sequence[tuple[str, str]]) -> list[Complaint]:
        """What the parser did not like.

        Args:
            parser: after it refused.
            nodes: name and operator of each node of the graph that it was given.
        """
        return [self.errors.complaint(parser.get_error(index), nodes) for index in range(parser.num_errors)]


def _may_be_half(layer_name: str, may_be_half: MayBeHalf) -> bool | None:
    """What is said of the node that a layer was made of; None for a layer that has no name from a node.

    The parsers name a layer after its node, and further layers of the node with a number behind the name.
    """
    stem, _, number = layer_name.rpartition("_")
    found = may_be_half(layer_name)
    return may_be_half(stem) if found is None and number.isdigit() else found


def _touches_float(trt: Any, layer: Any) -> bool:
    """Whether a layer has a precision to hold: it reads or makes floats.

    To compare in half precision, or to sort by it, would be as wrong as to compute. Constants, shapes, casts, Q/DQ and
    plugins have types of their own.
    """
    own = [getattr(trt.LayerType, name, None) for name in _LAYERS_WITH_TYPES]
    if layer.type in own:
        return False
    values = [layer.get_input(index) for index in range(layer.num_inputs)]
    values += [layer.get_output(index) for index in range(layer.num_outputs)]
    return any(value is not None and value.dtype == trt.DataType.FLOAT for value in values)
