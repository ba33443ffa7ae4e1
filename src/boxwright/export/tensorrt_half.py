"""Which nodes of a graph compute in half precision in an engine: those that the detections can stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from boxwright.core.errors import InputError
from boxwright.core.manifest import VerificationRecord
from boxwright.export.float_layers import find_float_layers
from boxwright.export.half_precision import half_candidates, to_half
from boxwright.export.onnx_files import set_manifest, write_onnx
from boxwright.export.tensorrt_api import MayBeHalf
from boxwright.export.tensorrt_request import EngineRequest, Report


def choose_half_nodes(
    request: EngineRequest, precision: str, is_strong: bool, work: Path, report: Report
) -> frozenset[str]:
    """The nodes that may compute in half precision; in a strongly typed INT8 graph none do.

    Args:
        request: with a graph whose types are known.
        precision: of the engine.
        is_strong: whether the types of the graph decide.
        work: folder for files that last as long as the export.
        report: told in a few words what is being done.

    Raises:
        InputError: where a layer that shall stay in float32 is none of the graph's.
        VerificationError: where no choice detects what the source detects.
    """
    if precision == "fp32" or (precision == "int8" and is_strong):
        return frozenset()
    typed = request.graph
    candidates = half_candidates(typed)
    pinned = request.options.float_layers
    if pinned is not None:
        _check_names(pinned, typed, request.source)
    elif precision == "fp16":
        report("comparing half precision with the source")
        pinned = find_float_layers(candidates, lambda names: _tried(request, typed, names, work))
    half = frozenset(candidates) - frozenset(pinned or ())
    return half - frozenset(to_half(typed, half)[1])


def _tried(request: EngineRequest, typed: ir.Model, names: frozenset[str], work: Path) -> VerificationRecord:
    path = work / "half.onnx"
    halved = to_half(typed, names)[0]
    set_manifest(halved, request.manifest)
    write_onnx(halved, path)
    return request.compare(path)


def _check_names(names: Sequence[str], graph: ir.Model, source: str) -> None:
    known = {str(node.name) for node in graph.graph}
    for name in names:
        if name not in known:
            raise InputError(
                "--float-layers",
                expected=f"names of nodes of {source}",
                got=name,
                fix="pass names as Netron shows them",
            )


def half_rule(graph: ir.Model, half: frozenset[str]) -> MayBeHalf:
    """What holds for a node holds for those that were written in its place, named `<node>/...`."""
    known = {str(node.name) for node in graph.graph}

    def may_be_half(name: str) -> bool | None:
        found = next((known_name for known_name in (name, name.rpartition("/")[0]) if known_name in known), None)
        return None if found is None else found in half

    return may_be_half
