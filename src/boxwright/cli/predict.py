"""`boxwright predict`: the objects in images, folders, videos and cameras."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boxwright.cli._opening import CheckpointOptions, open_detector
from boxwright.cli._options import (
    BackendOption,
    DeviceOption,
    ImageSizeOption,
    JsonOption,
    LabelsOption,
    NumThreadsOption,
    PreprocessOption,
    RunPrecisionOption,
    VariantOption,
    parse_image_size,
)
from boxwright.cli._output import print_json, stderr_console, stdout_console
from boxwright.core.errors import AnswerIsNoError, ImageError

if TYPE_CHECKING:
    from boxwright.cli._annotated import AnnotatedFolder
    from boxwright.core.detections import Detections
    from boxwright.runtimes.detector import Detector, StreamItem

_SCHEMA_VERSION = 1
_MOST_NAMED_FILES = 5


def predict(
    model: Annotated[Path, typer.Argument(help="Exported model, or a training checkpoint to run on PyTorch.")],
    sources: Annotated[
        list[str], typer.Argument(help="Images, folders, glob patterns, videos, stream URLs or a camera's index.")
    ],
    save: Annotated[Path | None, typer.Option("--save", help="Folder for annotated copies.")] = None,
    conf: Annotated[
        float | None, typer.Option("--conf", min=0.0, max=1.0, help="Keep scores above this; else the model's own.")
    ] = None,
    iou: Annotated[
        float | None, typer.Option("--iou", min=0.0, max=1.0, help="IoU threshold of the NMS; else the model's own.")
    ] = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    precision: RunPrecisionOption = None,
    num_threads: NumThreadsOption = None,
    variant: VariantOption = None,
    labels: LabelsOption = None,
    preprocess: PreprocessOption = None,
    imgsz: ImageSizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find objects in images, folders, videos and cameras."""
    checkpoint = CheckpointOptions(
        variant=variant,
        labels=labels,
        preprocess=preprocess,
        size_hw=None if imgsz is None else parse_image_size(imgsz),
    )
    was_interrupted = False
    with (
        _annotated_folder(save) as folder,
        open_detector(
            model,
            backend=backend,
            device=device,
            precision=precision,
            num_threads=num_threads or 0,
            conf=conf,
            iou=iou,
            checkpoint=checkpoint,
        ) as detector,
    ):
        results = _Results(detector, folder, as_json=as_json)
        try:
            for source in sources:
                results.add_source(source, is_only_one=len(sources) == 1)
        except KeyboardInterrupt:  # the usual end of a camera: what was found so far counts
            was_interrupted = True
        results.print_video_summary()
    if as_json:
        print_json({"model": str(model), **results.document()})
    elif save is not None:
        stdout_console().print(f"annotated copies: {save}", markup=False, highlight=False, soft_wrap=True)
    if was_interrupted:
        raise KeyboardInterrupt
    if results.unreadable:
        raise AnswerIsNoError(results.name_unreadable())


class _Results:
    """What was found, collected for `--json` or printed a line an image; of a video, one line at its end."""

    def __init__(self, detector: Detector, folder: AnnotatedFolder | None, *, as_json: bool) -> None:
        self.unreadable: list[dict[str, str]] = []
        self._detector = detector
        self._folder = folder
        self._as_json = as_json
        self._rows: list[dict[str, Any]] = []
        self._num_images = 0
        self._num_detections = 0
        self._video = ""
        self._num_video_frames = 0
        self._video_counts: Counter[str] = Counter()

    def add_source(self, source: str, *, is_only_one: bool) -> None:
        """Detect in all images of a source.

        Args:
            source: as the user named it.
            is_only_one: whether nothing is left to do where it cannot be read.

        Raises:
            ImageError: where it is the only source, a single image, and cannot be used.
        """
        from boxwright.runtimes.detector import StreamItem

        is_image_file = Path(source).is_file()
        try:
            items = self._detector.stream(source)
        except ImageError as error:
            if is_only_one:
                raise
            items = iter([StreamItem(name=source, error=error)])
        status = stderr_console().status(source)
        try:
            for item in items:
                if item.error is not None and is_only_one and is_image_file and item.frame_rate is None:
                    raise item.error
                if self._as_json or item.frame_rate is not None:  # else lines are printed as it goes
                    status.start()
                    status.update(item.name)
                self._add(item)
        finally:
            status.stop()
        self.print_video_summary()

    def _add(self, item: StreamItem) -> None:
        if item.image is None or item.detections is None:
            assert item.error is not None
            self.unreadable.append({"name": item.name, "reason": item.error.got})
            return
        self._num_images += 1
        self._num_detections += len(item.detections)
        saved = self._save(item)
        if self._as_json:
            self._rows.append(
                {
                    "name": item.name,
                    "size_hw": list(item.image.shape[:2]),
                    "detections": item.detections.to_jsonable(self._detector.class_names),
                    "saved": saved,
                }
            )
        elif item.frame_rate is None:
            self._print(f"{item.name}: {self._counted(self._count(item.detections))}")
        else:
            self._video = item.name.rpartition("#")[0]
            self._num_video_frames += 1
            self._video_counts += self._count(item.detections)

    def _save(self, item: StreamItem) -> Path | None:
        if self._folder is None:
            return None
        from boxwright.core.draw import draw_detections

        assert item.image is not None
        assert item.detections is not None
        drawn = draw_detections(item.image, item.detections, self._detector.class_names)
        if item.frame_rate is None:
            return self._folder.save_image(item.name, drawn)
        return self._folder.save_frame(item.name, drawn, item.frame_rate)

    def print_video_summary(self) -> None:
        """Print the line of a video that has ended, if there is one."""
        if self._video and not self._as_json:
            self._print(f"{self._video}: {self._num_video_frames} frames, {self._counted(self._video_counts)}")
        self._video, self._num_video_frames, self._video_counts = "", 0, Counter()

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "schema_version": _SCHEMA_VERSION,
            "backend": self._detector.backend.name,
            "device": self._detector.backend.device,
            "precision": self._detector.precision,
            "conf": self._detector.score_threshold,
            "iou": self._detector.iou_threshold,
            "num_images": self._num_images,
            "num_detections": self._num_detections,
            "images": self._rows,
            "unreadable": self.unreadable,
        }

    def name_unreadable(self) -> str:
        """One line that names the images that could not be used."""
        named = "; ".join(f"{entry['name']} ({entry['reason']})" for entry in self.unreadable[:_MOST_NAMED_FILES])
        more = len(self.unreadable) - _MOST_NAMED_FILES
        total = self._num_images + len(self.unreadable)
        return f"{len(self.unreadable)} of {total} images could not be used: {named}" + (
            f" and {more} more" if more > 0 else ""
        )

    def _count(self, detections: Detections) -> Counter[str]:
        return Counter(self._detector.class_names[class_id] for class_id in detections.class_ids)

    @staticmethod
    def _counted(counts: Counter[str]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"

    @staticmethod
    def _print(line: str) -> None:
        stdout_console().print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _annotated_folder(path: Path | None) -> Iterator[AnnotatedFolder | None]:
    if path is None:
        yield None
        return
    from boxwright.cli._annotated import AnnotatedFolder

    with AnnotatedFolder(path) as folder:
        yield folder
