"""Generated inputs of DecodeNMS, from ordinary heads to hostile ones, each rebuilt from a short description.

Hypothesis draws the descriptions; `core/decode_nms_corpus.jsonl` keeps a few thousand of them, one a line.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from numpy.typing import NDArray

from boxwright.core.decode_nms_attributes import STRIDE_CODINGS, BoxCoding, DecodeNmsAttributes

SPECIAL_VALUES = (np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, -0.0, 0.0, 88.72, -103.9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A description from which `inputs` makes the arguments of `decode_nms`.

    Attributes:
        seed: of the random numbers.
        batch_size: B.
        num_anchors: N.
        num_classes: C.
        attributes: of the operator.
        score_threshold: in [0, 1].
        iou_threshold: in [0, 1].
        logit_mean: of the class logits and the objectness.
        logit_spread: standard deviation of both.
        logit_step: logits are rounded to multiples of this, so that there are ties; 0 leaves them.
        box_spread: standard deviation of the raw box numbers.
        box_step: raw box numbers are rounded to multiples of this.
        special_fraction: of all numbers, those replaced by NaN, infinities and the like.
        prior_form: "none", "shared" (N, 4) or "batch" (B, N, 4).
        sliced: whether box, objectness and classes are slices of one wide head.
    """

    seed: int
    batch_size: int
    num_anchors: int
    num_classes: int
    attributes: DecodeNmsAttributes
    score_threshold: float
    iou_threshold: float
    logit_mean: float = -2.0
    logit_spread: float = 2.0
    logit_step: float = 0.0
    box_spread: float = 0.5
    box_step: float = 0.0
    special_fraction: float = 0.0
    prior_form: str = "shared"
    sliced: bool = False

    @property
    def num_logits(self) -> int:
        """Class logits in all: B * N * C."""
        return self.batch_size * self.num_anchors * self.num_classes

    def to_json(self) -> str:
        """One line, without what is default."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["attributes"] = _changed_fields(self.attributes)
        return json.dumps({**_changed_fields(self), "attributes": fields["attributes"]})

    @classmethod
    def from_json(cls, line: str) -> Case:
        """The case that `to_json` wrote."""
        fields = json.loads(line)
        listed = {name: tuple(v) if isinstance(v, list) else v for name, v in fields["attributes"].items()}
        return cls(**{**fields, "attributes": DecodeNmsAttributes(**listed)})

    def inputs(self) -> dict[str, Any]:
        """The arguments of `decode_nms`."""
        random = np.random.default_rng(self.seed)
        has_objectness = self.attributes.score_combination != "none"
        box_width = 4 * (self.num_classes if self.attributes.class_specific_boxes else 1)
        shape = (self.batch_size, self.num_anchors)
        logits = self._logits(random, (*shape, self.num_classes), self.attributes.score_activation)
        objectness = self._logits(random, (*shape, 1), self.attributes.objectness_activation)
        regression = self._regression(random, (*shape, box_width))
        if self.sliced:
            head = np.concatenate([regression, objectness, logits], axis=2)
            regression, objectness, logits = (
                head[..., :box_width],
                head[..., box_width : box_width + 1],
                head[..., box_width + 1 :],
            )
        return {
            "box_regression": regression,
            "class_logits": logits,
            "attributes": self.attributes,
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "objectness": objectness[..., 0] if has_objectness else None,
            "priors": self._priors(random),
            "image_size_hw": self._image_sizes(random),
        }

    def _logits(self, random: np.random.Generator, shape: tuple[int, ...], activation: str) -> NDArray[np.float32]:
        logits = random.normal(self.logit_mean, self.logit_spread, shape)
        if activation == "none":  # mostly probabilities, as of a graph that ends with the sigmoid
            logits = 1 / (1 + np.exp(-logits)) - 0.02
        return self._with_specials(random, _rounded(logits, self.logit_step))

    def _regression(self, random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        raw = random.normal(0, self.box_spread, shape)
        coding = self.attributes.box_coding
        if self.prior_form == "none":
            centres, sizes = random.uniform(0, 300, shape), random.gamma(2, 20, shape)
            boxes = np.where(np.arange(shape[-1]) % 4 < 2, centres, sizes)
            if coding == "xyxy":
                boxes = boxes.reshape(*shape[:2], shape[2] // 4, 4)
                boxes[..., 2:] += boxes[..., :2]
                boxes = boxes.reshape(shape)
            raw = raw + boxes
        elif coding == "distances":
            raw = np.abs(raw) + 0.1
        elif coding in ("xyxy", "cxcywh", "yolov1"):
            raw = raw + np.where(np.arange(shape[-1]) % 4 < 2, 0, 1)
        return self._with_specials(random, _rounded(raw, self.box_step))

    def _priors(self, random: np.random.Generator) -> NDArray[np.float32] | None:
        if self.prior_form == "none":
            return None
        shape = (self.num_anchors, 4) if self.prior_form == "shared" else (self.batch_size, self.num_anchors, 4)
        points, sizes = random.integers(0, 40, (*shape[:-1], 2)) * 8.0, 2.0 ** random.integers(3, 7, (*shape[:-1], 2))
        if self.attributes.box_coding == "anchor_delta":
            sizes = points + sizes
        return self._with_specials(random, np.concatenate([points, sizes], axis=-1))

    def _image_sizes(self, random: np.random.Generator) -> NDArray[np.float32] | None:
        if not self.attributes.clip_to_image:
            return None
        return self._with_specials(random, random.integers(50, 400, (self.batch_size, 2)).astype(np.float64))

    def _with_specials(self, random: np.random.Generator, values: NDArray[np.float64]) -> NDArray[np.float32]:
        result = values.astype(np.float32)
        if self.special_fraction > 0:
            chosen = random.random(values.shape) < self.special_fraction
            result[chosen] = random.choice(np.array(SPECIAL_VALUES, dtype=np.float32), int(chosen.sum()))
        return result


def _rounded(values: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    return values if step == 0 else np.round(values / step) * step


def _changed_fields(instance: Any) -> dict[str, Any]:
    """Fields of a dataclass whose values are not their defaults."""
    return {
        field.name: getattr(instance, field.name)
        for field in dataclasses.fields(instance)
        if getattr(instance, field.name) != field.default
    }


def sizes(max_pairs: int) -> st.SearchStrategy[tuple[int, int, int]]:
    """Batch, anchors and classes with at most so many numbers in the class head."""
    batch = st.integers(1, 8)
    anchors = st.one_of(st.integers(0, 40), st.integers(0, 1000), st.sampled_from([2100, 8400, 8732, 25_200]))
    classes = st.one_of(st.integers(1, 5), st.sampled_from([16, 17, 20, 80, 91, 1000]))
    return st.tuples(batch, anchors, classes).filter(lambda bnc: bnc[0] * bnc[1] * bnc[2] <= max_pairs)


@st.composite
def attribute_sets(draw: st.DrawFn, num_anchors: int, num_classes: int) -> DecodeNmsAttributes:
    """Attributes that fit the sizes, over every coding and rule."""
    coding = draw(st.sampled_from(get_args(BoxCoding)))
    cuts = sorted(draw(st.lists(st.integers(0, num_anchors), min_size=0, max_size=3)))
    level_sizes = tuple(b - a for a, b in zip([0, *cuts], [*cuts, num_anchors], strict=True))
    needs_strides = coding in STRIDE_CODINGS
    scope = draw(st.sampled_from(["image", "level", "class"]))
    keeps_levels = needs_strides or scope == "level"
    num_levels = len(level_sizes)
    return DecodeNmsAttributes(
        box_coding=coding,
        box_weights=draw(st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])),
        delta_clip=draw(st.sampled_from([0.0, 4.135166556742356, 0.5])),
        level_sizes=level_sizes if keeps_levels else (),
        level_strides=tuple(8.0 * 2**level for level in range(num_levels)) if needs_strides else (),
        level_scale_xy=draw(st.sampled_from([(), (1.05,) * num_levels, (2.0,) * num_levels])) if needs_strides else (),
        score_activation=draw(st.sampled_from(["none", "sigmoid", "softmax"])),
        objectness_activation=draw(st.sampled_from(["none", "sigmoid"])),
        score_combination=draw(st.sampled_from(["none", "multiply", "sqrt"])),
        background_class=draw(st.one_of(st.just(-1), st.integers(-1, num_classes - 1))),
        class_specific_boxes=draw(st.booleans()),
        multi_label=draw(st.booleans()),
        with_nms=draw(st.sampled_from([True, True, True, False])),
        class_agnostic=draw(st.booleans()),
        overlap=draw(st.sampled_from(["iou", "diou"])),
        pre_nms_top_k=draw(st.sampled_from([0, 0, 1, 5, 100, 1000])),
        top_k_scope=scope,
        clip_to_image=draw(st.booleans()),
        min_size=draw(st.sampled_from([0.0, 0.0, 1.0, 20.0])),
        max_detections=draw(st.sampled_from([1, 7, 100, 300])),
    )


@st.composite
def cases(draw: st.DrawFn, max_pairs: int = 20_000) -> Case:
    """Descriptions of inputs with at most `max_pairs` class logits."""
    batch_size, num_anchors, num_classes = draw(sizes(max_pairs))
    attributes = draw(attribute_sets(num_anchors, num_classes))
    may_lack_priors = attributes.box_coding in ("xyxy", "cxcywh")
    logit_mean = draw(st.sampled_from([-1.0, -4.0, 1.0, -8.0]))
    if batch_size * num_anchors * num_classes > 200_000:
        logit_mean = -8.0  # the numpy reference compares all candidates with each other
    return Case(
        seed=draw(st.integers(0, 2**32 - 1)),
        batch_size=batch_size,
        num_anchors=num_anchors,
        num_classes=num_classes,
        attributes=attributes,
        score_threshold=draw(st.sampled_from([0.05, 0.001, 0.25, 0.5, 0.0, 0.9, 1.0])),
        iou_threshold=draw(st.sampled_from([0.7, 0.65, 0.45, 0.0, 1.0])),
        logit_mean=logit_mean,
        logit_spread=draw(st.sampled_from([1.0, 2.0, 8.0 if logit_mean > -8.0 else 2.0])),
        logit_step=draw(st.sampled_from([0.0, 0.0, 0.25, 2.0])),
        box_spread=draw(st.sampled_from([0.1, 0.5, 2.0, 100.0])),
        box_step=draw(st.sampled_from([0.0, 0.0, 0.25])),
        special_fraction=draw(st.sampled_from([0.0, 0.0, 0.02, 0.2])),
        prior_form=draw(st.sampled_from(["none", "shared", "batch"] if may_lack_priors else ["shared", "batch"])),
        sliced=draw(st.booleans()),
    )


def draw_cases(count: int, max_pairs: int, seed_value: int) -> list[Case]:
    """Cases as hypothesis tries them; the corpus was made of them."""
    drawn: list[Case] = []

    @seed(seed_value)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(max_pairs))
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    return drawn
