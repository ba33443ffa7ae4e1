"""OpenCV's classical detectors as models: cascades (`haarcascade_*.xml`, LBP) and HOG with a linear SVM.

The files are those that OpenCV writes itself, in XML or YAML. They say nothing of classes, so the one class is named
after the file, and the manifest is made up when the file is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from boxwright.core.decode_spec import Boxes
from boxwright.core.errors import ModelFileError, UnsupportedError
from boxwright.core.images import quiet_opencv
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import Preprocess
from boxwright.runtimes.model_file import locate_model_file, xml_root
from boxwright.runtimes.opencv_detectors import CascadeDetector, HogDetector
from boxwright.runtimes.opencv_file_check import find_cascade_fault, find_hog_fault
from boxwright.runtimes.pixel_detector import PixelDetector, PixelDetectorBackend

SUFFIXES = (".xml", ".yml", ".yaml")
XML_ROOT = "opencv_storage"
# What files are called by custom, besides the object that they find.
_NAME_PREFIXES = ("haarcascade_", "lbpcascade_", "hogcascade_")
_MAX_DETECTIONS = 300


def is_opencv_file(path: str | os.PathLike[str]) -> bool:
    """Whether this is a file that OpenCV wrote, and not an engine's; False where it cannot be read."""
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES or not file.is_file():
        return False
    try:
        return file.suffix.lower() != ".xml" or xml_root(file) == XML_ROOT
    except ModelFileError:  # whoever opens it will say what is wrong with it
        return False


def available() -> str | None:
    """None where OpenCV has its classical detectors, else what is missing."""
    has_detectors = hasattr(cv2, "CascadeClassifier") and hasattr(cv2, "HOGDescriptor")
    return None if has_detectors else f"OpenCV {cv2.__version__} has no classical detectors; OpenCV 4 has"


class OpenCvBackend(PixelDetectorBackend):
    """A cascade or a HOG detector in OpenCV; see `boxwright.runtimes.backend.Backend`.

    OpenCV has one pool of threads for the whole process: `num_threads` sets it.
    """

    @property
    def name(self) -> str:
        """As for `--backend`."""
        return "opencv"

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str | None = None,
        num_threads: int = 0,
    ) -> OpenCvBackend:
        """Open an XML or YAML file of OpenCV; see `Backend.open`."""
        reason = available()
        if reason is not None:
            raise UnsupportedError(
                str(path), expected="OpenCV 4", got=reason, fix="run: pip install 'opencv-python-headless<5'"
            )
        _check_wishes(str(path), device, precision)
        file = locate_model_file(path)
        detector = _open_detector(file)
        if num_threads > 0:
            cv2.setNumThreads(num_threads)
        return cls(detector)


BACKEND = OpenCvBackend


def open_hog_descriptor(path: str | os.PathLike[str]) -> cv2.HOGDescriptor:
    """OpenCV's own object in a HOG file, with an SVM in it.

    Raises:
        ModelFileError: where the file cannot be read or holds something else.
    """
    file = locate_model_file(path)
    with _opencv_errors(file):
        if "blockSize" in (keys := _keys_of_first_node(file)):
            return _load_hog(file)
    raise _something_else(file, "a HOG detector (SVMDetector)", keys)


def _open_detector(file: Path) -> PixelDetector:
    """The detector in a file, told by what the file's first node holds."""
    with _opencv_errors(file):
        keys = _keys_of_first_node(file)
        if "stages" in keys:
            return _open_cascade(file)
        if "blockSize" in keys:
            descriptor = _load_hog(file)
            window_w, window_h = descriptor.winSize
            return HogDetector(descriptor, _manifest(file, "hog", (window_h, window_w)))
    raise _something_else(file, "a cascade (stages) or a HOG detector (SVMDetector)", keys)


@contextlib.contextmanager
def _opencv_errors(file: Path) -> Iterator[None]:
    """Names the file in what OpenCV raises, and keeps OpenCV from printing it."""
    try:
        with quiet_opencv():
            yield
    except (cv2.error, SystemError) as error:  # a SystemError is how OpenCV's binding shows some of its own
        raise _damaged(file, _reason(error)) from error


def _something_else(file: Path, wanted: str, keys: tuple[str, ...]) -> ModelFileError:
    return ModelFileError(
        str(file),
        expected=f"{wanted} of OpenCV",
        got="a file of OpenCV that holds " + (", ".join(keys[:5]) or "nothing"),
        fix="pass the detector's own file",
    )


def _keys_of_first_node(file: Path) -> tuple[str, ...]:
    """What the first node holds; it fits together where that is a detector."""
    try:
        if file.stat().st_size == 0:
            raise _damaged(file, "an empty file")
        with open(file, "rb"):  # OpenCV does not say why a file cannot be read
            pass
    except OSError as error:
        raise _damaged(file, error.strerror or str(error)) from error
    storage = cv2.FileStorage(str(file), cv2.FILE_STORAGE_READ)
    try:
        node: Any = storage.getFirstTopLevelNode()
        keys = tuple(node.keys()) if node.isMap() else ()
        faults = {"stages": find_cascade_fault, "blockSize": find_hog_fault}
        fault = next((find(node) for key, find in faults.items() if key in keys), None)
        if fault is not None:
            raise _damaged(file, fault)
        return keys
    finally:
        storage.release()


def _open_cascade(file: Path) -> CascadeDetector:
    classifier = cv2.CascadeClassifier()
    if not classifier.load(str(file)) or classifier.empty():
        raise _damaged(file, "one that OpenCV does not load as a cascade")
    window_w, window_h = classifier.getOriginalWindowSize()
    return CascadeDetector(classifier, _manifest(file, "viola_jones", (window_h, window_w)))


def _load_hog(file: Path) -> cv2.HOGDescriptor:
    descriptor = cv2.HOGDescriptor()
    if not descriptor.load(str(file)):
        raise _damaged(file, "one that OpenCV does not load as a HOG detector")
    if len(descriptor.svmDetector) == 0 or not descriptor.checkDetectorSize():
        raise ModelFileError(
            str(file),
            expected=f"a HOG detector with an SVM of {descriptor.getDescriptorSize() + 1} numbers",
            got=f"{len(descriptor.svmDetector)} numbers",
            fix="set it with cv2.HOGDescriptor.setSVMDetector and save it again",
        )
    return descriptor


def _manifest(file: Path, family: str, window_hw: tuple[int, int]) -> Manifest:
    """What the file would say of itself if it could; each window is stretched to `window_hw`."""
    name = file.stem
    for prefix in _NAME_PREFIXES:
        name = name.removeprefix(prefix)
    return Manifest(
        family=family,
        variant=file.stem,
        class_names=(name or file.stem,),
        preprocess=Preprocess(size_hw=window_hw, resize="stretch", channel_order="BGR", scale=1.0),
        decode=Boxes(num_classes=1, score_activation="none", max_detections=_MAX_DETECTIONS),
        stage="detections",
        input_kind="pixels",
        source_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def _check_wishes(path: str, device: str, precision: str | None) -> None:
    if device != "cpu":
        raise UnsupportedError(
            path, expected="the device cpu with OpenCV", got=repr(device), fix="leave the device out"
        )
    if precision not in (None, "fp32"):
        raise UnsupportedError(
            path,
            expected="the precision fp32 with OpenCV's classical detectors",
            got=repr(precision),
            fix="leave the precision out",
        )


def _damaged(file: Path, got: str) -> ModelFileError:
    return ModelFileError(
        str(file), expected="an intact cascade or HOG file of OpenCV", got=got, fix="get an intact copy of it"
    )


def _reason(error: Exception) -> str:
    """OpenCV's own word on it; its binding wraps some of its errors in another that says nothing."""
    message = getattr(error.__cause__ or error, "err", "")
    return "one that OpenCV cannot read" + (f" ({message})" if message else "")
