// The Python module boxwright.core._native. Inputs are read where they lie, and the GIL is released meanwhile.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "decode_nms.h"
#include "letterbox.h"

namespace nb = nanobind;

namespace {

using boxwright::AnchorRows;
using boxwright::DecodeNmsAttributes;
using boxwright::DecodeNmsInputs;
using boxwright::DecodeNmsOutputs;
using boxwright::InstructionSet;

template <int dimensions>
using FloatInput = nb::ndarray<const float, nb::ndim<dimensions>, nb::device::cpu>;
template <typename Value, int dimensions>
using Output = nb::ndarray<Value, nb::ndim<dimensions>, nb::device::cpu, nb::c_contig>;

template <typename Enum>
Enum parsed(const char* attribute, const std::string& name) {
    Enum value;
    if (!boxwright::parse(name, value)) {
        throw std::invalid_argument(std::string("DecodeNMS attribute ") + attribute + ": expected a known name, got " +
                                    name + "; correct the attribute");
    }
    return value;
}

// Where a list would be longer than can be, the text of the error says which input it was.
void require_shape(bool fits, const char* name) {
    if (!fits) {
        throw std::invalid_argument(std::string("DecodeNMS input ") + name +
                                    ": expected the shape that class_logits and the attributes ask for, got another; "
                                    "reshape it");
    }
}

AnchorRows rows_of(const FloatInput<3>& array, int64_t batch_size, int64_t num_anchors, int64_t width, const char* name) {
    const auto shape_is = [&](size_t axis, int64_t size) { return static_cast<int64_t>(array.shape(axis)) == size; };
    require_shape(shape_is(0, batch_size) && shape_is(1, num_anchors) && shape_is(2, width), name);
    return {array.data(), array.stride(0), array.stride(1), array.stride(2)};
}

AnchorRows objectness_rows(const FloatInput<2>& array, int64_t batch_size, int64_t num_anchors) {
    require_shape(static_cast<int64_t>(array.shape(0)) == batch_size && static_cast<int64_t>(array.shape(1)) == num_anchors,
                  "objectness");
    return {array.data(), array.stride(0), array.stride(1)};
}

InstructionSet chosen(const std::optional<std::string>& name) {
    return name ? boxwright::instruction_set_of(*name) : boxwright::best_instruction_set();
}

void decode_nms(const DecodeNmsAttributes& attributes, const FloatInput<3>& box_regression,
                const FloatInput<3>& class_logits, const std::optional<FloatInput<2>>& objectness,
                const std::optional<FloatInput<3>>& priors, const std::optional<FloatInput<2>>& image_size_hw,
                float score_threshold, float iou_threshold, const Output<int32_t, 2>& num_detections,
                const Output<float, 3>& boxes, const Output<float, 2>& scores, const Output<int32_t, 2>& class_ids,
                int num_threads, const std::optional<std::string>& instruction_set) {
    DecodeNmsInputs inputs;
    inputs.batch_size = static_cast<int64_t>(class_logits.shape(0));
    inputs.num_anchors = static_cast<int64_t>(class_logits.shape(1));
    inputs.num_classes = static_cast<int64_t>(class_logits.shape(2));
    const int64_t batch_size = inputs.batch_size, num_anchors = inputs.num_anchors, num_classes = inputs.num_classes;
    const int64_t box_width = attributes.class_specific_boxes ? 4 * num_classes : 4;
    inputs.box_regression = rows_of(box_regression, batch_size, num_anchors, box_width, "box_regression");
    inputs.class_logits = rows_of(class_logits, batch_size, num_anchors, num_classes, "class_logits");
    if (objectness) inputs.objectness = objectness_rows(*objectness, batch_size, num_anchors);
    if (priors) {
        const bool shared = priors->shape(0) == 1;
        inputs.priors = rows_of(*priors, shared ? 1 : batch_size, num_anchors, 4, "priors");
        if (shared) inputs.priors.batch_stride = 0;
    }
    if (image_size_hw) {
        require_shape(static_cast<int64_t>(image_size_hw->shape(0)) == batch_size && image_size_hw->shape(1) == 2 &&
                          (batch_size == 0 || (image_size_hw->stride(1) == 1 && (batch_size == 1 || image_size_hw->stride(0) == 2))),
                      "image_size_hw");
        inputs.image_size_hw = image_size_hw->data();
    }
    inputs.score_threshold = score_threshold;
    inputs.iou_threshold = iou_threshold;

    const size_t batch = class_logits.shape(0), top = static_cast<size_t>(attributes.max_detections);
    const bool outputs_fit = num_detections.shape(0) == batch && num_detections.shape(1) == 1 &&
                             boxes.shape(0) == batch && boxes.shape(1) == top && boxes.shape(2) == 4 &&
                             scores.shape(0) == batch && scores.shape(1) == top && class_ids.shape(0) == batch &&
                             class_ids.shape(1) == top;
    require_shape(outputs_fit, "outputs");
    const DecodeNmsOutputs outputs = {num_detections.data(), boxes.data(), scores.data(), class_ids.data()};
    const InstructionSet chosen_set = chosen(instruction_set);

    static thread_local boxwright::DecodeNmsWorkspace workspace;
    nb::gil_scoped_release release;
    boxwright::decode_nms(attributes, inputs, outputs, workspace, num_threads, chosen_set);
}

using Image = nb::ndarray<const uint8_t, nb::shape<-1, -1, 3>, nb::device::cpu>;
using Canvas = nb::ndarray<float, nb::shape<3, -1, -1>, nb::device::cpu, nb::c_contig>;
using PairOfSizes = std::array<int64_t, 2>;
using Triple = std::array<float, 3>;

void letterbox(const Image& image, const Canvas& canvas, PairOfSizes resized_hw, PairOfSizes offset_tl, Triple pad_value,
               Triple scale, Triple bias, bool swap_channels, const std::optional<std::string>& instruction_set) {
    if (image.size() > 0 && (image.stride(2) != 1 || (image.shape(1) > 1 && image.stride(1) != 3))) {
        throw std::invalid_argument("letterbox image: expected the bytes of a row side by side, got gaps; copy the image");
    }
    boxwright::ImageView view;
    view.data = image.data();
    view.height = static_cast<int64_t>(image.shape(0));
    view.width = static_cast<int64_t>(image.shape(1));
    view.row_stride = image.stride(0);
    boxwright::LetterboxParameters parameters;
    parameters.resized_height = resized_hw[0];
    parameters.resized_width = resized_hw[1];
    parameters.top = offset_tl[0];
    parameters.left = offset_tl[1];
    parameters.height = static_cast<int64_t>(canvas.shape(1));
    parameters.width = static_cast<int64_t>(canvas.shape(2));
    for (size_t channel = 0; channel < 3; ++channel) {
        parameters.pad_value[channel] = pad_value[channel];
        parameters.scale[channel] = scale[channel];
        parameters.bias[channel] = bias[channel];
    }
    parameters.swap_channels = swap_channels;
    float* pixels = canvas.data();
    const InstructionSet chosen_set = chosen(instruction_set);

    static thread_local boxwright::LetterboxWorkspace workspace;
    nb::gil_scoped_release release;
    boxwright::letterbox(view, parameters, pixels, workspace, chosen_set);
}

void boxes_to_image(const Output<const float, 2>& boxes_xyxy, const Output<float, 2>& image_boxes_xyxy,
                    PairOfSizes resized_hw, PairOfSizes offset_tl, PairOfSizes image_size_hw) {
    if (boxes_xyxy.shape(1) != 4 || image_boxes_xyxy.shape(1) != 4 || boxes_xyxy.shape(0) != image_boxes_xyxy.shape(0)) {
        throw std::invalid_argument("boxes: expected shape (N, 4) twice, got another; reshape them");
    }
    boxwright::LetterboxParameters parameters;
    parameters.resized_height = resized_hw[0];
    parameters.resized_width = resized_hw[1];
    parameters.top = offset_tl[0];
    parameters.left = offset_tl[1];
    boxwright::boxes_to_image(boxes_xyxy.data(), static_cast<int64_t>(boxes_xyxy.shape(0)), parameters, image_size_hw[0],
                              image_size_hw[1], image_boxes_xyxy.data());
}

void bind_attributes(nb::module_& m) {
    nb::class_<DecodeNmsAttributes>(m, "DecodeNmsAttributes")
        .def(
            "__init__",
            [](DecodeNmsAttributes* self, const std::string& box_coding, std::array<float, 4> box_weights,
               float delta_clip, std::vector<int64_t> level_sizes, std::vector<float> level_strides,
               std::vector<float> level_scale_xy, const std::string& score_activation,
               const std::string& objectness_activation, const std::string& score_combination, int64_t background_class,
               bool class_specific_boxes, bool multi_label, bool with_nms, bool class_agnostic,
               const std::string& overlap, int64_t pre_nms_top_k, const std::string& top_k_scope, bool clip_to_image,
               float min_size, int64_t max_detections) {
                DecodeNmsAttributes attributes;
                attributes.box_coding = parsed<boxwright::BoxCoding>("box_coding", box_coding);
                for (size_t i = 0; i < 4; ++i) attributes.box_weights[i] = box_weights[i];
                attributes.delta_clip = delta_clip;
                attributes.level_sizes = std::move(level_sizes);
                attributes.level_strides = std::move(level_strides);
                attributes.level_scale_xy = std::move(level_scale_xy);
                attributes.score_activation = parsed<boxwright::Activation>("score_activation", score_activation);
                attributes.objectness_activation =
                    parsed<boxwright::Activation>("objectness_activation", objectness_activation);
                attributes.score_combination = parsed<boxwright::Combination>("score_combination", score_combination);
                attributes.background_class = background_class;
                attributes.class_specific_boxes = class_specific_boxes;
                attributes.multi_label = multi_label;
                attributes.with_nms = with_nms;
                attributes.class_agnostic = class_agnostic;
                attributes.overlap = parsed<boxwright::Overlap>("overlap", overlap);
                attributes.pre_nms_top_k = pre_nms_top_k;
                attributes.top_k_scope = parsed<boxwright::TopKScope>("top_k_scope", top_k_scope);
                attributes.clip_to_image = clip_to_image;
                attributes.min_size = min_size;
                attributes.max_detections = max_detections;
                const std::string error = attributes.validate();
                if (!error.empty()) throw std::invalid_argument(error);
                new (self) DecodeNmsAttributes(std::move(attributes));
            },
            nb::kw_only(), nb::arg("box_coding"), nb::arg("box_weights"), nb::arg("delta_clip"), nb::arg("level_sizes"),
            nb::arg("level_strides"), nb::arg("level_scale_xy"), nb::arg("score_activation"),
            nb::arg("objectness_activation"), nb::arg("score_combination"), nb::arg("background_class"),
            nb::arg("class_specific_boxes"), nb::arg("multi_label"), nb::arg("with_nms"), nb::arg("class_agnostic"),
            nb::arg("overlap"), nb::arg("pre_nms_top_k"), nb::arg("top_k_scope"), nb::arg("clip_to_image"),
            nb::arg("min_size"), nb::arg("max_detections"))
        .def_ro("max_detections", &DecodeNmsAttributes::max_detections);
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (InstructionSet set : boxwright::available_instruction_sets()) names.emplace_back(boxwright::name_of(set));
    return names;
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The compiled kernels of Boxwright; use them through boxwright.core.kernels.";
    m.def("instruction_sets", &instruction_sets, "Instruction sets that this CPU and this build have, best first.");
    bind_attributes(m);
    m.def("decode_nms", &decode_nms, nb::arg("attributes"), nb::arg("box_regression").noconvert(),
          nb::arg("class_logits").noconvert(), nb::arg("objectness").noconvert().none(),
          nb::arg("priors").noconvert().none(), nb::arg("image_size_hw").noconvert().none(), nb::arg("score_threshold"),
          nb::arg("iou_threshold"), nb::arg("num_detections").noconvert(), nb::arg("boxes").noconvert(),
          nb::arg("scores").noconvert(), nb::arg("class_ids").noconvert(), nb::arg("num_threads"),
          nb::arg("instruction_set").none(), "Fills the four outputs; priors have a batch axis of length 1 or B.");
    m.def("letterbox", &letterbox, nb::arg("image").noconvert(), nb::arg("canvas").noconvert(), nb::arg("resized_hw"),
          nb::arg("offset_tl"), nb::arg("pad_value"), nb::arg("scale"), nb::arg("bias"), nb::arg("swap_channels"),
          nb::arg("instruction_set").none(), "Fills the canvas (3, H, W).");
    m.def("boxes_to_image", &boxes_to_image, nb::arg("boxes_xyxy").noconvert(), nb::arg("image_boxes_xyxy").noconvert(),
          nb::arg("resized_hw"), nb::arg("offset_tl"), nb::arg("image_size_hw"),
          "Maps boxes (N, 4) on the canvas to pixels of the image.");
}
