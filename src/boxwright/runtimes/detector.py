"""`Detector`: a model file and its manifest, from images to detections."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from boxwright.core.detections import Detections
from boxwright.core.errors import ImageError, InputError, ManifestError, UnsupportedError
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import ImageTransform, PreprocessedBatch, check_image
from boxwright.core.sources import SourceItem, open_source
from boxwright.runtimes.backend import Backend, open_backend
from boxwright.runtimes.buffers import BufferPool
from boxwright.runtimes.engine_sidecar import read_sidecar
from boxwright.runtimes.image_input import as_bgr_image
from boxwright.runtimes.model_fit import THRESHOLD_INPUTS, check_fit
from boxwright.runtimes.postprocess import Postprocessor

if TYPE_CHECKING:
    from boxwright.runtimes.image_input import ImageInput

# Where the model leaves the batch size open: enough to keep an engine busy, few enough to bound the memory.
_MOST_IMAGES_A_BATCH = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamItem:
    """One image of a source, with what was found in it or the reason why nothing could be.

    Attributes:
        name: path of the image; of a video or camera its name and the frame's number.
        image: (H, W, 3) uint8 BGR; None where it could not be read.
        detections: None where there is an error.
        error: None where there are detections.
        frame_rate: of a video or camera, in frames a second; 0 where it does not say. None for an image file.
    """

    name: str
    image: NDArray[np.uint8] | None = None
    detections: Detections | None = None
    error: ImageError | None = None
    frame_rate: float | None = None


class Detector:
    """Finds objects in images with a model file that carries its own description.

    Calling it does everything; `preprocess`, `infer` and `postprocess` are the same in three steps.

    Attributes:
        manifest: of the model.
        backend: that runs it.
        score_threshold: kept are detections that score more.
        iou_threshold: of the NMS; without effect on a model that has none.
    """

    manifest: Manifest
    backend: Backend
    score_threshold: float
    iou_threshold: float

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        backend: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        num_threads: int = 0,
        conf: float | None = None,
        iou: float | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        """Open a model file.

        Args:
            path: of an ONNX file, an OpenVINO IR or the folder that holds one, or a TensorRT engine.
            backend: engine to run it, e.g. "onnxruntime" or "openvino"; None chooses an installed one by the file.
            device: e.g. "cpu", "cuda" or "cuda:1"; None for the engine's own, the CPU but for TensorRT.
            precision: of the arithmetic: "fp32" (also where None), "fp16", "bf16"; "int8" for a calibrated file. An
                engine of TensorRT was built for one, which None takes.
            num_threads: of the CPU; 0 leaves it to the engine.
            conf: score threshold in [0, 1]; None takes the manifest's.
            iou: IoU threshold of the NMS in [0, 1]; None takes the manifest's.
            manifest: instead of the one in the file.

        Raises:
            ModelFileError: where the file cannot be opened.
            ManifestError: where it has no manifest, or one that does not fit.
            UnsupportedError: where the engine cannot do what is asked.
            MissingDependencyError: where the engine is not installed.
        """
        engine_precision = None if precision == "int8" else precision
        opened = open_backend(path, backend=backend, device=device, precision=engine_precision, num_threads=num_threads)
        try:
            manifest = manifest or _manifest_of(opened, str(path))
            if precision == "int8" and manifest.precision != "int8":
                raise UnsupportedError(
                    str(path),
                    expected="a calibrated model for the precision int8",
                    got=f"one in {manifest.precision}",
                    fix="run 'boxwright calibrate' first",
                )
            self._attach(opened, manifest, conf, iou, str(path))
        except BaseException:
            opened.close()
            raise

    @classmethod
    def from_backend(
        cls, backend: Backend, manifest: Manifest, *, conf: float | None = None, iou: float | None = None
    ) -> Detector:
        """A detector on a model that is open already, e.g. a `TorchBackend`; it closes the backend with itself.

        Args:
            backend: the opened model.
            manifest: of the model.
            conf: as for `Detector`.
            iou: as for `Detector`.

        Raises:
            ManifestError, UnsupportedError: as for `Detector`.
        """
        detector = cls.__new__(cls)
        detector._attach(backend, manifest, conf, iou, backend.name)
        return detector

    def _attach(self, backend: Backend, manifest: Manifest, conf: float | None, iou: float | None, source: str) -> None:
        check_fit(backend, manifest, source)
        _check_thresholds(backend, manifest, conf, iou, source)
        self.backend = backend
        self.manifest = manifest
        self.score_threshold = manifest.score_threshold if conf is None else conf
        # What is built in decides, whatever the manifest says.
        built_in = getattr(backend, "fixed_thresholds", {}).get("iou_threshold", manifest.iou_threshold)
        self.iou_threshold = built_in if iou is None else iou
        self._threshold_inputs = {
            name: np.full([1] * len(spec.shape), getattr(self, name), dtype=spec.dtype)
            for name, spec in backend.inputs.items()
            if name in THRESHOLD_INPUTS
        }
        self._postprocessor = Postprocessor(
            manifest, score_threshold=self.score_threshold, iou_threshold=self.iou_threshold
        )
        self._buffers = BufferPool(getattr(backend, "allocate_input", None))
        self._fixed_batch = backend.inputs["images"].shape[0]
        bounds = backend.inputs["images"].largest
        self._largest_batch = _MOST_IMAGES_A_BATCH if bounds is None else min(bounds[0], _MOST_IMAGES_A_BATCH)
        self._takes_pixels = manifest.input_kind == "pixels"

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the class ids."""
        return self.manifest.class_names

    @property
    def precision(self) -> str:
        """What the arithmetic is done in: "int8" for a calibrated model, else the engine's precision."""
        return "int8" if self.manifest.precision == "int8" else self.backend.precision

    @property
    def batch_size(self) -> int:
        """How many images `preprocess` takes at once."""
        return self._largest_batch if self._fixed_batch is None else self._fixed_batch

    @overload
    def __call__(self, image: list[Any] | tuple[Any, ...]) -> list[Detections]: ...

    @overload
    def __call__(self, image: ImageInput) -> Detections: ...

    def __call__(self, image: ImageInput | list[Any] | tuple[Any, ...]) -> Detections | list[Detections]:
        """Detect the objects in an image, or in each of several.

        Args:
            image: (H, W, 3) uint8 BGR array, path, or PIL image; or a list of these, of any sizes.

        Returns:
            The detections, in pixels of the image; a list of them for a list.

        Raises:
            ImageError: where an image cannot be read or used.
        """
        if not isinstance(image, (list, tuple)):
            return self._detect([as_bgr_image(image)])[0]
        found: list[Detections] = []
        for start in range(0, len(image), self.batch_size):
            images = [as_bgr_image(entry) for entry in image[start : start + self.batch_size]]
            for batch in _of_one_size(images) if self._takes_pixels else [images]:
                found += self._detect(batch)
        return found

    def stream(self, source: str | os.PathLike[str] | int) -> Iterator[StreamItem]:
        """Detect in a folder, glob pattern, video or camera, one image in memory at a time.

        An image of several that cannot be read or used is an item with an error, and the next follows.

        Args:
            source: an image, folder, glob pattern, video file, stream URL or camera index.

        Raises:
            ImageError: before the first item, where there is nothing to read.
        """
        return map(self._detect_item, open_source(source))

    def _detect_item(self, item: SourceItem) -> StreamItem:
        if item.image is None:
            return StreamItem(name=item.name, error=item.error, frame_rate=item.frame_rate)
        try:
            detections = self(item.image)
        except ImageError as unusable:
            error = ImageError(item.name, expected=unusable.expected, got=unusable.got, fix=unusable.fix)
            return StreamItem(name=item.name, image=item.image, error=error, frame_rate=item.frame_rate)
        return StreamItem(name=item.name, image=item.image, detections=detections, frame_rate=item.frame_rate)

    def preprocess(self, images: Sequence[NDArray[np.uint8]]) -> PreprocessedBatch:
        """Make the network's input.

        Args:
            images: 1 to `batch_size` arrays (H, W, 3) uint8 BGR, of any sizes; of one size where the graph takes
                pixels.

        Returns:
            The input, filled up to the batch size where the model fixes it, and one transform for each image given.

        Raises:
            ImageError: where an image cannot be used.
            InputError: where there are none or too many.
        """
        if not 1 <= len(images) <= self.batch_size:
            raise InputError(
                "Detector.preprocess", expected=f"1 to {self.batch_size} images", got=str(len(images)), fix="split them"
            )
        num_missing = max(0, (self._fixed_batch or 0) - len(images))
        filled = [*images, *[images[-1]] * num_missing]
        if self._takes_pixels:
            batch = self._take_pixels(filled)
        else:
            batch = self.manifest.preprocess.apply_batch(filled, allocate=self._buffers.take)
        return batch if num_missing == 0 else batch._replace(transforms=batch.transforms[: len(images)])

    def infer(self, batch: PreprocessedBatch) -> dict[str, NDArray[Any]]:
        """Run the network.

        Args:
            batch: from `preprocess`.

        Returns:
            The outputs of the model by name.
        """
        inputs: dict[str, NDArray[Any]] = {"images": batch.images, **self._threshold_inputs}
        if batch.pixel_mask is not None:
            inputs["pixel_mask"] = batch.pixel_mask.astype(self.backend.inputs["pixel_mask"].dtype, copy=False)
        return self.backend.run(inputs)

    def postprocess(
        self, outputs: Mapping[str, NDArray[Any]], transforms: Sequence[ImageTransform]
    ) -> list[Detections]:
        """Make detections of the network's outputs.

        Args:
            outputs: from `infer`.
            transforms: from `preprocess`.

        Returns:
            One result an image, in pixels of the image.
        """
        return self._postprocessor(outputs, transforms)

    def close(self) -> None:
        """Free the engine; the detector cannot be used any more."""
        self.backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _detect(self, images: list[NDArray[np.uint8]]) -> list[Detections]:
        batch = self.preprocess(images)
        return self.postprocess(self.infer(batch), batch.transforms)

    def _take_pixels(self, images: Sequence[NDArray[np.uint8]]) -> PreprocessedBatch:
        """The images as they are, for a graph that preprocesses by itself."""
        for image in images:
            check_image(image)
        if len({image.shape for image in images}) > 1:
            raise InputError(
                "Detector.preprocess",
                expected="images of one size for a model that takes pixels",
                got=", ".join(f"{image.shape[1]}x{image.shape[0]}" for image in images),
                fix="pass them one size at a time, or give the list to the detector itself",
            )
        transform = self.manifest.preprocess.plan((images[0].shape[0], images[0].shape[1]))
        # One image needs no copy, and most calls have one.
        pixels = np.ascontiguousarray(images[0])[None] if len(images) == 1 else np.stack(images)  # (B, H, W, 3)
        return PreprocessedBatch(pixels, (transform,) * len(images), None)


def _of_one_size(images: list[NDArray[np.uint8]]) -> list[list[NDArray[np.uint8]]]:
    """The images in order, in lists of neighbours of one size."""
    return [list(group) for _, group in itertools.groupby(images, key=lambda image: image.shape)]


def _manifest_of(backend: Backend, source: str) -> Manifest:
    if backend.manifest_json is None and backend.name == "tensorrt":
        read_sidecar(source)  # says what is missing
    if backend.manifest_json is None:
        raise ManifestError(
            source,
            expected="a model with Boxwright's manifest inside",
            got="none",
            fix="adopt it with: boxwright export FILE --head HEAD --labels LABELS --preprocess NAME --out OUT",
        )
    return Manifest.from_json(backend.manifest_json, source)


def _can_have(backend: Backend, name: str, value: float) -> bool:
    """Whether a threshold can be set, or is built in so that this one is had all the same.

    What scores less than asked for can be left out afterwards: it never suppressed anything that scores more.
    """
    if name in backend.inputs:
        return True
    built_in = getattr(backend, "fixed_thresholds", {}).get(name)
    if built_in is None:
        return False
    is_score = name == "score_threshold"
    return bool(np.float32(value) >= np.float32(built_in)) if is_score else np.float32(value) == np.float32(built_in)


def _check_thresholds(backend: Backend, manifest: Manifest, conf: float | None, iou: float | None, source: str) -> None:
    """Refuse thresholds that are none, and those that a graph with built-in ones would ignore."""
    needs_iou = manifest.decode.nms is not None
    wishes = {"score_threshold": ("conf", conf, True), "iou_threshold": ("iou", iou, needs_iou)}
    for name, (argument, value, is_needed) in wishes.items():
        if value is None:
            continue
        if not 0 <= value <= 1:
            raise InputError(argument, expected="a number in [0, 1]", got=str(value), fix="correct it")
        if manifest.stage == "detections" and is_needed and not _can_have(backend, name, value):
            raise UnsupportedError(
                source,
                expected=f"a model whose {name} can be set",
                got=f"one with a built-in {name} in {backend.name}",
                fix=f"leave {argument} out, or export the model with --{argument}",
            )
