"""Building models and loading checkpoints, ours and their authors'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.core.errors import CheckpointError, InputError
from boxwright.core.labels import load_labels
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common.checkpoint import (
    CheckpointFile,
    StateDict,
    find_state_dict,
    load_weights,
    read_checkpoint,
    sha256_of,
)
from boxwright.models.common.costs import variant_costs
from boxwright.models.common.detector import DetectionModel
from boxwright.models.common.registry import (
    ImportedWeights,
    NetworkFile,
    families,
    family_of,
    open_network,
    rebuild,
    variant_named,
)

OWN_KEY = "boxwright"
OWN_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A variant that can be built.

    Attributes:
        family: name of its file.
        variant: its name.
        size_hw: the usual input size.
        num_parameters: with 80 classes.
        gflops: of one image at that size with 80 classes, a multiplication and an addition counted as two.
        imports: which public checkpoints it reads.
        is_exportable: whether a graph can hold all of it; else it runs in PyTorch alone.
    """

    family: str
    variant: str
    size_hw: tuple[int, int]
    num_parameters: int
    gflops: float
    imports: str
    is_exportable: bool = True


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A detector with its weights and all that belongs to them.

    Attributes:
        module: in evaluation mode, on the CPU.
        family: name of its file.
        variant: e.g. "yolox-nano".
        class_names: in the order of the class ids.
        preprocess: from image to input.
        size_hw: of the input.
        source_sha256: of the checkpoint; None for weights made in memory.
    """

    module: DetectionModel
    family: str
    variant: str
    class_names: tuple[str, ...]
    preprocess: Preprocess
    size_hw: tuple[int, int]
    source_sha256: str | None = None

    def manifest(self) -> Manifest:
        """The manifest of the raw module."""
        from boxwright import __version__

        return Manifest(
            family=self.family,
            variant=self.variant,
            class_names=self.class_names,
            preprocess=self.preprocess,
            decode=self.module.decode_spec(self.size_hw),
            stage="raw",
            source_sha256=self.source_sha256,
            iou_threshold=self.module.nms_iou_threshold,
            boxwright_version=__version__,
        )


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a checkpoint gives to a module.

    Attributes:
        variant: that it is of.
        imported: the weights and their class count.
        manifest: of our own checkpoints.
        sha256: of the file.
    """

    variant: str
    imported: ImportedWeights
    manifest: Manifest | None
    sha256: str


def list_models() -> tuple[ModelInfo, ...]:
    """All variants of all families, with their cost."""
    costs = variant_costs()
    return tuple(
        ModelInfo(
            family=name,
            variant=variant,
            size_hw=config.size_hw,
            num_parameters=costs[variant].num_parameters,
            gflops=costs[variant].gflops,
            imports=family.IMPORTS,
            is_exportable=costs[variant].is_exportable,
        )
        for name, family in families().items()
        for variant, config in family.VARIANTS.items()
    )


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """What a `--model` names, before it is built for data.

    Attributes:
        name: of a variant, or the path of a network's file.
        size_hw: the input size that the variant is usually run at, or that the file names.
        network: in the file; None for a variant.
    """

    name: str
    size_hw: tuple[int, int]
    network: NetworkFile | None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class names that the file brings along, as the tree of YOLO9000 does; None for all others."""
        return None if self.network is None else self.network.class_names

    def build(self, num_classes: int, *, size_hw: tuple[int, int] | None = None) -> DetectionModel:
        """The module; see `build_model`. A file's network is there once, and is given every time."""
        if self.network is None:
            module = families()[family_of(self.name)].build(self.name, num_classes)
        else:
            module = self.network.module
            if module.num_classes != num_classes:
                raise InputError(
                    self.name,
                    expected=f"a network of {num_classes} classes, as many as the data has",
                    got=f"one of {module.num_classes}",
                    fix="correct classes in its heads and filters before them, or pass the data that it is for",
                )
        if size_hw is not None:
            module.check_size(size_hw)
        return module

    def example(self) -> DetectionModel:
        """A module to ask what the family can do before the data are read: of one class, or those of the file."""
        return self.build(1 if self.network is None else self.network.module.num_classes)


def choose_model(name: str) -> ModelChoice:
    """What a `--model` names; a file is read, and its network made with random weights where the file has none.

    Raises:
        CheckpointError: where such a file cannot be read or is wrong.
        InputError: where there is no such variant.
    """
    network = open_network(Path(name))
    if network is not None:
        return ModelChoice(name=name, size_hw=network.size_hw, network=network)
    variant = variant_named(name)
    return ModelChoice(name=variant, size_hw=families()[family_of(variant)].VARIANTS[variant].size_hw, network=None)


def build_model(variant: str, *, num_classes: int, size_hw: tuple[int, int] | None = None) -> DetectionModel:
    """A module with random weights.

    Args:
        variant: its name, e.g. "yolox-nano", or the path of a file that describes a network (.cfg), whose weights are
            taken where it has them (.weights).
        num_classes: without the background.
        size_hw: checked against what the network can take, where given.

    Raises:
        CheckpointError: where such a file cannot be read or is wrong.
        InputError: where there is no such variant, it has another class count, or it cannot take that size.
    """
    return choose_model(variant).build(num_classes, size_hw=size_hw)


def default_size_hw(variant: str) -> tuple[int, int]:
    """The input size that a variant is usually run at, or that a file of a network names.

    Raises:
        InputError: where there is no such variant.
    """
    return choose_model(variant).size_hw


def load_model(
    source: str | Path,
    *,
    model: str | None = None,
    class_names: Sequence[str] | str | None = None,
    preprocess: Preprocess | str | None = None,
    size_hw: tuple[int, int] | None = None,
) -> LoadedModel:
    """Load a detector from a training checkpoint.

    Args:
        source: a checkpoint that `boxwright train` wrote, or an author's file.
        model: the variant; needed for an author's file.
        class_names: names, or what `load_labels` takes ("coco", a text file); needed for an author's file.
        preprocess: or the name of a preset; the checkpoint's own, or the family's default, where None.
        size_hw: of the input; the checkpoint's own, or the variant's usual one, where None.

    Raises:
        CheckpointError: where the file cannot be read or does not fit the variant.
        InputError: where something needed was not given or does not fit.
    """
    network = open_network(Path(source))
    if network is not None:
        return _load_network(network, Path(source), model, class_names, preprocess, size_hw)
    weights = read_weights(source, model=model)
    manifest = weights.manifest
    module = described_network(weights) or build_model(weights.variant, num_classes=weights.imported.num_classes)
    load_weights(module, weights.imported.state, str(source))
    size_hw = _choose_size(weights, preprocess, size_hw)
    module.check_size(size_hw)
    names = _names(class_names, manifest, weights.imported.num_classes, str(source))
    return LoadedModel(
        module=module.eval(),
        family=module.family,
        variant=weights.variant,
        class_names=names,
        preprocess=_choose_preprocess(preprocess, manifest, module, size_hw),
        size_hw=size_hw,
        source_sha256=weights.sha256,
    )


def described_network(weights: Weights) -> DetectionModel | None:
    """The network that a checkpoint of ours carries, where its variant is none of a family's."""
    if weights.manifest is None:
        return None
    return rebuild(weights.manifest.family, weights.variant, weights.imported.state)


def _load_network(
    network: NetworkFile,
    source: Path,
    model: str | None,
    class_names: Sequence[str] | str | None,
    preprocess: Preprocess | str | None,
    size_hw: tuple[int, int] | None,
) -> LoadedModel:
    """A file that describes its network itself and so needs no variant."""
    module = network.module
    if model is not None:
        raise InputError(
            str(source), expected="no --model: the file describes its network", got=model, fix="leave out --model"
        )
    if size_hw is None:
        given = preprocess.size_hw if isinstance(preprocess, Preprocess) else None
        size_hw = given or network.size_hw
    module.check_size(size_hw)
    return LoadedModel(
        module=module.eval(),
        family=module.family,
        variant=module.variant,
        class_names=_names(class_names or network.class_names, None, module.num_classes, str(source)),
        preprocess=_choose_preprocess(preprocess, None, module, size_hw),
        size_hw=size_hw,
        source_sha256=sha256_of(source),
    )


def read_weights(source: str | Path, *, model: str | None = None) -> Weights:
    """Read a checkpoint and name its weights as ours are named, without building the module.

    Raises:
        CheckpointError: where the file cannot be read, or is of another variant than `model`.
        InputError: where `model` is needed and missing, or unknown.
    """
    file = read_checkpoint(source)
    if OWN_KEY in file.content:
        return _own_weights(file, model)
    if model is None:
        raise InputError(
            str(source),
            expected="the variant of a checkpoint that boxwright did not write",
            got="none",
            fix="pass --model, e.g. --model yolox-nano",
        )
    model = variant_named(model)
    family = families()[family_of(model)]
    state = find_state_dict(file.content, str(source))
    try:
        imported = family.import_checkpoint(state, model)
    except CheckpointError as error:
        raise CheckpointError(str(source), expected=error.expected, got=error.got, fix=error.fix) from error
    return Weights(variant=model, imported=imported, manifest=None, sha256=file.sha256)


def _own_weights(file: CheckpointFile, model: str | None) -> Weights:
    source = str(file.path)
    header: Any = file.content[OWN_KEY]
    schema = header.get("schema") if isinstance(header, dict) else None
    if schema != OWN_SCHEMA:
        raise CheckpointError(
            source, expected=f"checkpoint schema {OWN_SCHEMA}", got=repr(schema), fix="update boxwright"
        )
    missing = [key for key in ("model", "manifest") if key not in file.content]
    if missing:
        raise CheckpointError(
            source, expected="weights and manifest", got=f"no {' and no '.join(missing)}", fix="train again"
        )
    manifest = Manifest.from_json(file.content["manifest"], source)
    if model is not None and variant_named(model) != manifest.variant:
        raise CheckpointError(
            source,
            expected=f"a checkpoint of {model}",
            got=f"one of {manifest.variant}",
            fix=f"pass a checkpoint of {model}, or the --model that this one is of",
        )
    state: StateDict = dict(file.content["model"])
    imported = ImportedWeights(state=state, num_classes=len(manifest.class_names))
    return Weights(variant=manifest.variant, imported=imported, manifest=manifest, sha256=file.sha256)


def _choose_size(
    weights: Weights, preprocess: Preprocess | str | None, size_hw: tuple[int, int] | None
) -> tuple[int, int]:
    if size_hw is not None:
        return size_hw
    if isinstance(preprocess, Preprocess) and preprocess.size_hw is not None:
        return preprocess.size_hw
    if weights.manifest is not None and weights.manifest.preprocess.size_hw is not None:
        return weights.manifest.preprocess.size_hw
    return default_size_hw(weights.variant)


def _choose_preprocess(
    preprocess: Preprocess | str | None, manifest: Manifest | None, module: DetectionModel, size_hw: tuple[int, int]
) -> Preprocess:
    from dataclasses import replace

    if isinstance(preprocess, str):
        return preset(preprocess, size_hw)
    if preprocess is None and manifest is not None:
        preprocess = manifest.preprocess
    if preprocess is None:
        return module.default_preprocess(size_hw)
    return replace(preprocess, size_hw=size_hw) if preprocess.size_hw is not None else preprocess


def _names(
    class_names: Sequence[str] | str | None, manifest: Manifest | None, num_classes: int, source: str
) -> tuple[str, ...]:
    if class_names is None and manifest is not None:
        return manifest.class_names
    if class_names is None:
        raise InputError(
            source,
            expected=f"the names of the {num_classes} classes that it was trained on",
            got="none",
            fix="pass --labels, e.g. --labels coco",
        )
    names = load_labels(class_names) if isinstance(class_names, str) else tuple(class_names)
    if len(names) != num_classes:
        raise InputError(
            f"labels for {source}",
            expected=f"{num_classes} names, one for each class of the head",
            got=str(len(names)),
            fix="pass the labels that it was trained on",
        )
    return names
