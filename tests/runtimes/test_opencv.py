"""OpenCV's cascades and HOG behind the common interface: the boxes are those that OpenCV finds when it is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from boxwright.bench.latency import LatencyProbe
from boxwright.bench.raw_engine import open_raw_engine
from boxwright.cli._bench_artifacts import ArtifactCache, SourceOptions
from boxwright.cli._bench_plan import Matrix, plan_candidates
from boxwright.cli._opening import open_candidate
from boxwright.cli.main import main
from boxwright.core.errors import InputError, ManifestError, ModelFileError, UnsupportedError
from boxwright.core.manifest import Manifest
from boxwright.runtimes.backend import open_backend
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.model_file import xml_root
from boxwright.runtimes.opencv import OpenCvBackend, available, is_opencv_file
from boxwright.runtimes.opencv_detectors import margins_to_scores, neighbors_to_scores

if available() is not None:
    pytest.skip(str(available()), allow_module_level=True)

CASCADES = Path(cv2.data.haarcascades)
FACES = CASCADES / "haarcascade_frontalface_default.xml"
Image = NDArray[np.uint8]
Run = Callable[..., tuple[int, str, str]]


def face_like(side: int) -> Image:
    """A light oval with dark eyes and mouth, which the cascade takes for a face."""
    canvas = np.full((side, side), 120, dtype=np.uint8)
    at = side / 100

    def ellipse(x: float, y: float, w: float, h: float, grey: int) -> None:
        centre, axes = (round(x * at), round(y * at)), (round(w * at), round(h * at))
        cv2.ellipse(canvas, centre, axes, 0, 0, 360, grey, -1)

    ellipse(50, 52, 36, 46, 205)
    for eye_x in (35, 65):
        ellipse(eye_x, 36, 12, 4, 70)  # brow
        ellipse(eye_x, 44, 9, 5, 60)
    ellipse(50, 58, 5, 12, 225)
    ellipse(50, 66, 9, 3, 120)
    ellipse(50, 78, 16, 4, 90)
    return cv2.cvtColor(cv2.GaussianBlur(canvas, (0, 0), 1.5 * at), cv2.COLOR_GRAY2BGR)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def faces_image() -> Image:
    """Three of them, of different sizes, on a canvas that is not square."""
    image = np.full((231, 407, 3), 120, dtype=np.uint8)
    for x, y, side in ((20, 30, 100), (150, 90, 130), (300, 12, 74)):
        image[y : y + side, x : x + side] = face_like(side)
    return image


@pytest.fixture(scope="module")
def people_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenCV's own people detector, saved as a user would."""
    path = tmp_path_factory.mktemp("hog") / "person.xml"
    return save_people(path)


def save_people(path: Path) -> Path:
    descriptor = cv2.HOGDescriptor()
    descriptor.setSVMDetector(cv2.HOGDescriptor.getDefaultPeopleDetector())
    descriptor.save(str(path))
    return path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run_verb(*arguments: object) -> tuple[int, str, str]:
        status = main([*map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return run_verb


def found_by_opencv(file: Path, image: Image) -> list[tuple[int, ...]]:
    boxes = cv2.CascadeClassifier(str(file)).detectMultiScale(image)
    return sorted((int(x), int(y), int(x + w), int(y + h)) for x, y, w, h in boxes)


def found_by_us(detector: Detector, image: Image) -> list[tuple[int, ...]]:
    return sorted(tuple(int(side) for side in box) for box in detector(image).boxes_xyxy)


@pytest.mark.parametrize("name", ["frontalface_default", "frontalface_alt_tree", "eye", "russian_plate_number"])
def test_cascades_find_what_opencv_finds(name: str, faces_image: Image) -> None:
    file = CASCADES / f"haarcascade_{name}.xml"
    with Detector(file) as detector:
        assert detector.backend.name == "opencv"
        assert detector.class_names == (name,)
        assert found_by_us(detector, faces_image) == found_by_opencv(file, faces_image)


def test_drawn_faces_are_found(faces_image: Image) -> None:
    with Detector(FACES) as detector:
        found = detector(faces_image)
    assert len(found) >= 2  # else the comparisons here would compare nothing
    assert (found.scores > 0.25).all()
    assert (found.scores < 1).all()


def test_lbp_cascade(tmp_path: Path, faces_image: Image) -> None:
    file, image = tmp_path / "lbpcascade_spot.xml", faces_image[20:140, 10:130]
    file.write_text(lbp_cascade())
    with Detector(file) as detector:
        assert detector.class_names == ("spot",)
        found = found_by_us(detector, image)
    assert found
    assert found == found_by_opencv(file, image)


def lbp_cascade() -> str:
    """One weak classifier of one LBP feature: passes where all eight neighbours are as bright as the centre or more."""
    subsets = " ".join(["-1"] * 7 + [str(2**31 - 1)])  # a set bit, of 256 codes, votes against
    return f"""<?xml version="1.0"?>
<opencv_storage><cascade type_id="opencv-cascade-classifier"><stageType>BOOST</stageType>
<featureType>LBP</featureType><height>24</height><width>24</width>
<stageParams><maxWeakCount>1</maxWeakCount></stageParams>
<featureParams><maxCatCount>256</maxCatCount></featureParams><stageNum>1</stageNum>
<stages><_><maxWeakCount>1</maxWeakCount><stageThreshold>0.</stageThreshold><weakClassifiers>
<_><internalNodes>0 -1 0 {subsets}</internalNodes><leafValues>-1. 1.</leafValues></_></weakClassifiers></_></stages>
<features><_><rect>0 0 8 8</rect></_></features></cascade></opencv_storage>
"""


def test_real_photographs(shared_dir: Path, people_file: Path) -> None:
    files = sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))
    descriptor = cv2.HOGDescriptor()
    descriptor.setSVMDetector(cv2.HOGDescriptor.getDefaultPeopleDetector())
    num_faces = num_people = 0
    with Detector(FACES) as faces, Detector(people_file) as people:
        for file in files[:12]:
            image = np.asarray(cv2.imread(str(file)), dtype=np.uint8)
            expected = found_by_opencv(FACES, image)
            assert found_by_us(faces, image) == expected, file.name
            num_faces += len(expected)
            boxes, weights = descriptor.detectMultiScale(image)
            found = people(image)
            assert len(found) == len(boxes), file.name
            np.testing.assert_allclose(found.scores, np.sort(margins_to_scores(np.ravel(weights)))[::-1], rtol=1e-6)
            num_people += len(boxes)
    assert num_faces >= 5
    assert num_people >= 1


def test_scores_grow_with_the_evidence() -> None:
    neighbors = np.arange(1, 200, dtype=np.float32)
    margins = np.linspace(0, 8, 50, dtype=np.float32)
    for scores in (neighbors_to_scores(neighbors), margins_to_scores(margins)):
        assert (np.diff(scores) > 0).all()
        assert scores[0] > 0
        assert scores[-1] < 1
    assert neighbors_to_scores(np.array([3.0], np.float32))[0] == 0.25  # not above the default threshold


@pytest.mark.parametrize(("conf", "min_neighbors"), [(0.25, 3), (0.5, 9)])
def test_threshold_is_opencvs_number_of_neighbors(faces_image: Image, conf: float, min_neighbors: int) -> None:
    boxes = cv2.CascadeClassifier(str(FACES)).detectMultiScale(faces_image, 1.1, min_neighbors)
    with Detector(FACES, conf=conf) as detector:
        assert len(detector(faces_image)) == len(boxes)


@pytest.mark.parametrize("suffix", [".xml", ".yml", ".yaml"])
def test_hog_files(tmp_path: Path, suffix: str) -> None:
    with Detector(save_people(tmp_path / f"person{suffix}")) as detector:
        assert detector.class_names == ("person",)
        assert detector.manifest.family == "hog"
        assert detector.manifest.preprocess.size_hw == (128, 64)


@pytest.mark.parametrize("size_hw", [(2, 2), (23, 300), (127, 64), (300, 20)])
def test_image_smaller_than_the_window_holds_nothing(people_file: Path, size_hw: tuple[int, int]) -> None:
    image = np.zeros((*size_hw, 3), dtype=np.uint8)
    for file in (FACES, people_file):
        with Detector(file) as detector:
            assert len(detector(image)) == 0


def test_three_stages_and_lists(faces_image: Image) -> None:
    with Detector(FACES) as detector:
        at_once = detector(faces_image)
        batch = detector.preprocess([faces_image])
        in_steps = detector.postprocess(detector.infer(batch), batch.transforms)[0]
        several = detector([faces_image, faces_image[:40, :40], faces_image])
    for other in (in_steps, several[0], several[2]):
        assert (other.boxes_xyxy == at_once.boxes_xyxy).all()
        assert (other.scores == at_once.scores).all()
    assert len(several[1]) == 0


def test_several_threads(faces_image: Image) -> None:
    with Detector(FACES) as detector:
        images = [faces_image, np.ascontiguousarray(faces_image[:, ::-1]), faces_image[:150]]
        expected = [found_by_us(detector, image) for image in images]
        results: dict[int, list[tuple[int, ...]]] = {}

        def work(index: int) -> None:
            results[index] = found_by_us(detector, images[index % 3])

        threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(results[index] == expected[index % 3] for index in range(6))


def test_backend_refuses_what_does_not_fit(faces_image: Image) -> None:
    with open_backend(FACES) as backend:
        assert isinstance(backend, OpenCvBackend)
        for inputs in ({}, {"images": faces_image}, {"images": np.stack([faces_image] * 2)}):
            with pytest.raises(InputError):
                backend.run(inputs)
        assert backend.run({"images": faces_image[None]})["num_detections"].shape == (1, 1)
        ticket = backend.submit({"images": faces_image[None], "score_threshold": np.zeros(1, np.float32)})
        everything = backend.wait(ticket)["scores"].shape[1]
        assert everything >= backend.run({"images": faces_image[None]})["scores"].shape[1]
    with pytest.raises(InputError, match="closed"):
        backend.run({"images": faces_image[None]})


@pytest.mark.parametrize("wish", [{"device": "cuda"}, {"precision": "int8"}, {"precision": "fp16"}])
def test_wishes_that_opencv_does_not_fulfil(wish: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(wish.values()))):
        Detector(FACES, **wish)  # type: ignore[arg-type]


def test_threads_of_opencv() -> None:
    before = cv2.getNumThreads()
    try:
        with Detector(FACES, num_threads=1):
            assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


HEAD = '<?xml version="1.0"?>\n'
BAD_FILES = {
    "empty.xml": "",
    "text.xml": "faces",
    "cut.xml": FACES.read_text()[:60_000],
    "root_only.xml": HEAD + "<opencv_storage>\n</opencv_storage>\n",
    "no_cascade.xml": HEAD + "<opencv_storage><camera><width>3</width></camera></opencv_storage>",
    "number.xml": HEAD + "<opencv_storage><cascade>3</cascade></opencv_storage>",
    "no_stages.xml": HEAD + "<opencv_storage><cascade><stages>3</stages></cascade></opencv_storage>",
    "page.xml": HEAD + "<html><body>404</body></html>",
    "page_as_saved.xml": "\n<!DOCTYPE html>\n<html lang=en><meta charset=utf-8><body>haarcascade<br></body>",
    "hog.xml": HEAD + "<opencv_storage><hog><blockSize>16 16</blockSize></hog></opencv_storage>",
    "data.yaml": "train: images/train\nnames: [a, b]\n",
    "empty.yml": "",
}


@pytest.mark.parametrize("name", sorted(BAD_FILES))
def test_files_that_are_no_detector(run: Run, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(BAD_FILES[name])
    with pytest.raises(ModelFileError):
        Detector(file)
    status, out, err = run("predict", file, tmp_path / "photo.jpg")
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert name in err
    assert ("an HTML page; download the file itself" in err) == name.startswith("page")


def small_cascade() -> str:
    """One stump on one feature, intact."""
    return f"""{HEAD}<opencv_storage><cascade type_id="opencv-cascade-classifier"><stageType>BOOST</stageType>
<featureType>HAAR</featureType><height>9</height><width>11</width>
<stageParams><maxWeakCount>1</maxWeakCount></stageParams>
<featureParams><maxCatCount>0</maxCatCount></featureParams><stageNum>1</stageNum>
<stages><_><maxWeakCount>1</maxWeakCount><stageThreshold>0.5</stageThreshold><weakClassifiers>
<_><internalNodes>0 -1 0 0.25</internalNodes><leafValues>-1. 1.</leafValues></_></weakClassifiers></_></stages>
<features><_><rects><_>3 4 6 2 -1.</_><_>6 4 3 2 2.</_></rects><tilted>0</tilted></_></features>
</cascade></opencv_storage>"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0 -1 0 0.25", "0 -1 99999999 0.25", "the feature 99999999 of 1"),
        ("0 -1 0 0.25", "0 -1 -5000000 0.25", "the feature -5000000 of 1"),
        ("0 -1 0 0.25", "70000 -1 0 0.25", "the child 70000"),
        ("0 -1 0 0.25", "0 -2 0 0.25", "the child -2"),
        ("0 -1 0 0.25", "0 .Nan 0 0.25", "the child nan"),
        ("0 -1 0 0.25", "0 -1 1e30 0.25", "the feature 1e"),
        ("<maxCatCount>0<", "<maxCatCount>.Nan<", "HAAR features of nan categories"),
        ("0 -1 0 0.25", "0 -1", "a tree of 2 numbers"),
        ("<leafValues>-1. 1.</leafValues>", "<leafValues></leafValues>", "0 leaves"),
        ("3 4 6 2 -1.", "3 4 9 2 -1.", "a feature at 3 4 9 2 in a window of 11x9"),
        ("3 4 6 2 -1.", "3 4", "a feature at 3 4 nan nan"),
        ("<tilted>0</tilted>", "<tilted>1</tilted>", "in a window of 11x9"),
        ("HAAR", "LBP", "LBP features of 0 categories"),
        ("HAAR", "SIFT", "'SIFT'"),
    ],
)
def test_cascades_that_would_end_the_process(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "small.xml"
    file.write_text(small_cascade())
    with Detector(file) as detector:
        assert len(detector(np.full((40, 50, 3), 90, np.uint8))) == 0
    file.write_text(small_cascade().replace(old, new))
    with pytest.raises(ModelFileError, match=message):
        Detector(file)


def test_lbp_features_outside_the_window(tmp_path: Path) -> None:
    file = tmp_path / "lbp.xml"
    file.write_text(lbp_cascade().replace("<rect>0 0 8 8</rect>", "<rect>0 1 8 8</rect>"))
    with pytest.raises(ModelFileError, match="a feature at 0 1 8 8 in a window of 24x24"):
        Detector(file)


@pytest.mark.parametrize("file", sorted(CASCADES.glob("*.xml")), ids=lambda file: file.stem)
def test_all_cascades_of_opencv_open(file: Path) -> None:
    with Detector(file) as detector:
        assert detector.manifest.family == "viola_jones"


def test_cascade_of_opencv_1(tmp_path: Path) -> None:
    """One of OpenCV's is still in that format, whose trees point at each other in another way."""
    original = CASCADES / "haarcascade_license_plate_rus_16stages.xml"
    text = original.read_text()
    assert "opencv-haar-classifier" in text
    first = text.index("<left_val>")
    broken = (
        text[:first] + "<left_node>70000</left_node>" + text[text.index("</left_val>", first) + len("</left_val>") :]
    )
    (tmp_path / "old.xml").write_text(broken)
    with pytest.raises(ModelFileError, match="the child 70000"):
        Detector(tmp_path / "old.xml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<cellSize>\n    8 8<", "<cellSize>\n    0 8<", "a cellSize of 0x8"),
        ("<blockStride>\n    8 8<", "<blockStride>\n    0 0<", "a blockStride of 0x0"),
        ("<winSize>\n    64 128<", "<winSize>\n    64 129<", "windows of 129 pixels"),
        ("<nbins>9<", "<nbins>-1<", "-1 bins"),
    ],
)
def test_hog_layouts_that_would_end_the_process(
    tmp_path: Path, people_file: Path, old: str, new: str, message: str
) -> None:
    text = people_file.read_text()
    assert old in text
    (tmp_path / "hog.xml").write_text(text.replace(old, new))
    with pytest.raises(ModelFileError, match=message):
        Detector(tmp_path / "hog.xml")


def test_hog_without_svm(tmp_path: Path) -> None:
    file = tmp_path / "bare.xml"
    cv2.HOGDescriptor().save(str(file))
    with pytest.raises(ModelFileError, match=r"SVM of 3781 numbers, got"):
        Detector(file)


def test_which_engine_an_xml_file_is_for(tmp_path: Path) -> None:
    ir = tmp_path / "m.xml"
    ir.write_text('<?xml version="1.0"?>\n<!-- a comment -->\n<net name="m" version="11"></net>')
    assert xml_root(ir) == "net"
    assert xml_root(FACES) == "opencv_storage"
    assert is_opencv_file(FACES)
    assert not is_opencv_file(ir)
    assert not is_opencv_file(tmp_path / "absent.xml")
    with pytest.raises(ModelFileError, match=r"opens \(<opencv_storage>\), got <net>"):
        open_backend(ir, backend="opencv")
    with pytest.raises(ModelFileError, match=r"opens \(<net>\), got <opencv_storage>"):
        open_backend(FACES, backend="openvino")
    with pytest.raises(ModelFileError, match="got a path that does not exist"):
        Detector(tmp_path / "absent.xml")


def test_predict(run: Run, tmp_path: Path, faces_image: Image) -> None:
    cv2.imwrite(str(tmp_path / "photo.png"), faces_image)
    status, out, _ = run(
        "predict", FACES, tmp_path / "photo.png", "--labels", "face", "--save", tmp_path / "o", "--json"
    )
    document = json.loads(out)
    assert status == 0
    assert document["backend"] == "opencv"
    found = document["images"][0]["detections"]
    assert sorted(tuple(map(int, row["box_xyxy"])) for row in found) == found_by_opencv(FACES, faces_image)
    assert {row["class_name"] for row in found} == {"face"}
    assert (tmp_path / "o" / "photo.png").is_file()


def test_labels_that_do_not_fit(run: Run, tmp_path: Path) -> None:
    status, _, err = run("predict", FACES, tmp_path / "photo.png", "--labels", "face,eye")
    assert status == 2
    assert "1 names" in err
    status, _, err = run("predict", FACES, tmp_path / "photo.png", "--labels", "labels.txt")
    assert (status, "labels" in err) == (2, True)


def test_val(run: Run, tmp_path: Path, faces_image: Image) -> None:
    """Boxes that are what the cascade finds, in one image of two."""
    boxes = found_by_opencv(FACES, faces_image)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    for name, image in (("a.png", faces_image), ("b.png", faces_image[:40])):
        cv2.imwrite(str(tmp_path / "val2017" / name), image)
    images = [
        {"id": 1, "file_name": "a.png", "height": 231, "width": 407},
        {"id": 2, "file_name": "b.png", "height": 40, "width": 407},
    ]
    annotations = [
        {"id": index, "image_id": 1, "category_id": 1, "bbox": [x, y, right - x, bottom - y], "iscrowd": 0,
         "area": (right - x) * (bottom - y)}
        for index, (x, y, right, bottom) in enumerate(boxes, start=1)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "face"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
    status, out, _ = run("val", FACES, "--data", tmp_path, "--labels", "face", "--json")
    assert status == 0
    report = json.loads(out)
    assert (report["backend"], report["max_det"], report["num_images"]) == ("opencv", 300, 2)
    assert report["map"] > 0.99  # what is surer than the threshold of 0.25 is ranked first


def test_bench_times_it_without_a_bare_engine(tmp_path: Path, faces_image: Image) -> None:
    with Detector(FACES) as detector:
        with pytest.raises(UnsupportedError, match="a detector without a graph"):
            open_raw_engine(FACES, detector, num_threads=1, work_dir=tmp_path)
        block = LatencyProbe(detector, [faces_image]).run_block(0, 2)
    assert min(block.infer) > max(block.preprocess)  # the stages are those of any other model


def test_bench_names_its_class(tmp_path: Path) -> None:
    matrix = Matrix(backends=(), precisions=("fp32",), sizes_hw=(), device="cpu", num_threads=1)
    cache = ArtifactCache(tmp_path, tmp_path, on_note=lambda note: None)
    (candidate,) = plan_candidates([FACES], matrix, SourceOptions(labels="face"), cache)
    assert candidate.opener_options == {"labels": "face"}
    wishes = {"backend": None, "device": "cpu", "precision": "fp32", "num_threads": 0, "conf": None, "iou": None}
    with open_candidate(candidate.model, **wishes, **candidate.opener_options) as detector:
        assert detector.class_names == ("face",)


def test_manifest_survives_the_way_through_json(people_file: Path) -> None:
    with open_backend(people_file) as backend:
        manifest = Manifest.from_json(backend.manifest_json or "")
        assert (manifest.stage, manifest.input_kind) == ("detections", "pixels")
        two = Manifest(**{**vars(manifest), "decode": type(manifest.decode)(num_classes=2), "class_names": ("a", "b")})
        assert Detector.from_backend(backend, two).class_names == ("a", "b")
    with pytest.raises(ManifestError):
        Manifest(**{**vars(manifest), "class_names": ()})
