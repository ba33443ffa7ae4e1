"""Class names: built in, from a file, or spelled out."""

from __future__ import annotations

from pathlib import Path

from boxwright.core.errors import InputError

COCO = tuple(
    (
        "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
        "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,"
        "suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
        "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
        "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,"
        "cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
    ).split(",")
)
VOC = tuple(
    (
        "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,"
        "sheep,sofa,train,tvmonitor"
    ).split(",")
)
# COCO numbers its 80 categories up to 90; heads of torchvision and others have an output for each number, 0 included.
_COCO_GAPS = frozenset({0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
_coco_names = iter(COCO)
COCO91 = tuple(f"unused {number}" if number in _COCO_GAPS else next(_coco_names) for number in range(91))
# Where the head counts its background apart from the classes, there is no 0.
COCO90 = COCO91[1:]
BUILT_IN = {"coco": COCO, "coco90": COCO90, "coco91": COCO91, "voc": VOC}


def load_labels(labels: str) -> tuple[str, ...]:
    """Class names in the order of the class ids.

    Args:
        labels: `coco`, `coco91` (by COCO's category number, gaps included), `coco90` (the same from 1 on), `voc`, a
            text file with a name a line, or names separated by commas.

    Raises:
        InputError: where the file cannot be read, or a name is empty or there twice.
    """
    if labels in BUILT_IN:
        return BUILT_IN[labels]
    path = Path(labels)
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--labels {labels}", expected="a text file with a name a line", got=str(error), fix="mend the file"
            ) from error
        names = tuple(line.strip() for line in lines if line.strip())
    elif "," in labels:
        names = tuple(name.strip() for name in labels.split(","))
    else:
        raise InputError(
            "--labels",
            expected="coco, coco90, coco91, voc, a text file with a name a line, or names separated by commas",
            got=repr(labels),
            fix="pass one of these",
        )
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if not names or "" in names or duplicates:
        raise InputError(
            f"--labels {labels}",
            expected="names that are not empty and differ",
            got=f"the name {duplicates[0]!r} twice" if duplicates else "an empty name",
            fix="mend the list",
        )
    return names
