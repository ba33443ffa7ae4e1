// The OpenVINO extension: boxwright::DecodeNMS as an operation that the CPU runs with the kernel of decode_nms.h.
//
// Glue only. Inputs come in the order of boxwright/export/decode_nms/function.py: box_regression, class_logits,
// score_threshold, iou_threshold, then objectness, image_size_hw and priors where the attributes call for them.
#include <charconv>
#include <cmath>
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>
#include <openvino/op/op.hpp>
#include <string>
#include <system_error>
#include <vector>

#include "decode_nms.h"

namespace {

using boxwright::AnchorRows;
using boxwright::DecodeNmsAttributes;
using boxwright::DecodeNmsInputs;

// The attributes as files carry them: names for the enumerators.
struct WrittenAttributes {
    std::string box_coding = "xyxy";
    std::vector<float> box_weights = {1.0f, 1.0f, 1.0f, 1.0f};
    float delta_clip = 0.0f;
    std::vector<int64_t> level_sizes;
    std::vector<float> level_strides;
    std::vector<float> level_scale_xy;
    std::string score_activation = "sigmoid";
    std::string objectness_activation = "sigmoid";
    std::string score_combination = "none";
    int64_t background_class = -1;
    bool class_specific_boxes = false;
    bool multi_label = false;
    bool with_nms = true;
    bool class_agnostic = false;
    std::string overlap = "iou";
    int64_t pre_nms_top_k = 0;
    std::string top_k_scope = "image";
    bool clip_to_image = false;
    float min_size = 0.0f;
    int64_t max_detections = 300;
};

// OpenVINO writes lists of floats with six digits, so lists go into the IR as text of our own.
template <typename Number>
std::string text_of(const std::vector<Number>& numbers) {
    std::string text;
    for (const Number number : numbers) {
        // Not printf and strtod, which write and read a comma where the locale has one.
        char digits[32];
        const auto written = std::to_chars(digits, digits + sizeof digits, static_cast<double>(number));
        text += (text.empty() ? "" : ",") + std::string(digits, written.ptr);
    }
    return text;
}

std::vector<double> numbers_of(const std::string& name, const std::string& text) {
    std::vector<double> numbers;
    const char *position = text.data(), *const last = text.data() + text.size();
    while (position != last) {
        double number = 0.0;
        const auto [end, error] = std::from_chars(position, last, number);
        if (error != std::errc() || (end != last && *end != ',')) {
            OPENVINO_THROW("DecodeNMS attribute ", name, ": expected numbers between commas, got ", text,
                           "; correct the attribute");
        }
        numbers.push_back(number);
        position = end == last ? end : end + 1;
    }
    return numbers;
}

template <typename Number>
void visit_list(ov::AttributeVisitor& visitor, const std::string& name, std::vector<Number>& numbers) {
    std::string text = text_of(numbers);
    visitor.on_attribute(name, text);
    numbers.clear();
    for (const double number : numbers_of(name, text)) numbers.push_back(static_cast<Number>(number));
}

template <typename Enum>
Enum parsed(const char* attribute, const std::string& name) {
    Enum value;
    OPENVINO_ASSERT(boxwright::parse(name, value), "DecodeNMS attribute ", attribute, ": expected a known name, got ",
                    name, "; correct the attribute");
    return value;
}

DecodeNmsAttributes kernel_attributes(const WrittenAttributes& written) {
    OPENVINO_ASSERT(written.box_weights.size() == 4, "DecodeNMS attribute box_weights: expected four numbers, got ",
                    written.box_weights.size(), "; correct the attribute");
    DecodeNmsAttributes attributes;
    attributes.box_coding = parsed<boxwright::BoxCoding>("box_coding", written.box_coding);
    for (size_t i = 0; i < 4; ++i) attributes.box_weights[i] = written.box_weights[i];
    attributes.delta_clip = written.delta_clip;
    attributes.level_sizes = written.level_sizes;
    attributes.level_strides = written.level_strides;
    attributes.level_scale_xy = written.level_scale_xy;
    attributes.score_activation = parsed<boxwright::Activation>("score_activation", written.score_activation);
    attributes.objectness_activation =
        parsed<boxwright::Activation>("objectness_activation", written.objectness_activation);
    attributes.score_combination = parsed<boxwright::Combination>("score_combination", written.score_combination);
    attributes.background_class = written.background_class;
    attributes.class_specific_boxes = written.class_specific_boxes;
    attributes.multi_label = written.multi_label;
    attributes.with_nms = written.with_nms;
    attributes.class_agnostic = written.class_agnostic;
    attributes.overlap = parsed<boxwright::Overlap>("overlap", written.overlap);
    attributes.pre_nms_top_k = written.pre_nms_top_k;
    attributes.top_k_scope = parsed<boxwright::TopKScope>("top_k_scope", written.top_k_scope);
    attributes.clip_to_image = written.clip_to_image;
    attributes.min_size = written.min_size;
    attributes.max_detections = written.max_detections;
    const std::string error = attributes.validate();
    OPENVINO_ASSERT(error.empty(), error);
    return attributes;
}

// Where each input stands; -1 where the attributes leave it out.
struct InputPlaces {
    int objectness = -1;
    int image_size_hw = -1;
    int priors = -1;
};

InputPlaces places_of(const WrittenAttributes& written, size_t num_inputs) {
    InputPlaces places;
    int next = 4;
    if (written.score_combination != "none") places.objectness = next++;
    if (written.clip_to_image) places.image_size_hw = next++;
    const size_t num_without_priors = static_cast<size_t>(next);
    const bool needs_priors = written.box_coding != "xyxy" && written.box_coding != "cxcywh";
    if (num_inputs == num_without_priors + 1) places.priors = next;
    const bool fits = num_inputs == num_without_priors + 1 || (!needs_priors && num_inputs == num_without_priors);
    OPENVINO_ASSERT(fits, "DecodeNMS: expected ", num_without_priors + (needs_priors ? 1 : 0),
                    " inputs for these attributes, got ", num_inputs, "; connect them all");
    return places;
}

class DecodeNMS : public ov::op::Op {
   public:
    OPENVINO_OP("DecodeNMS", "boxwright");

    DecodeNMS() = default;
    DecodeNMS(const ov::OutputVector& arguments, WrittenAttributes written) : Op(arguments), written_(std::move(written)) {
        constructor_validate_and_infer_types();
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("box_coding", written_.box_coding);
        visit_list(visitor, "box_weights", written_.box_weights);
        visitor.on_attribute("delta_clip", written_.delta_clip);
        visit_list(visitor, "level_sizes", written_.level_sizes);
        visit_list(visitor, "level_strides", written_.level_strides);
        visit_list(visitor, "level_scale_xy", written_.level_scale_xy);
        visitor.on_attribute("score_activation", written_.score_activation);
        visitor.on_attribute("objectness_activation", written_.objectness_activation);
        visitor.on_attribute("score_combination", written_.score_combination);
        visitor.on_attribute("background_class", written_.background_class);
        visitor.on_attribute("class_specific_boxes", written_.class_specific_boxes);
        visitor.on_attribute("multi_label", written_.multi_label);
        visitor.on_attribute("with_nms", written_.with_nms);
        visitor.on_attribute("class_agnostic", written_.class_agnostic);
        visitor.on_attribute("overlap", written_.overlap);
        visitor.on_attribute("pre_nms_top_k", written_.pre_nms_top_k);
        visitor.on_attribute("top_k_scope", written_.top_k_scope);
        visitor.on_attribute("clip_to_image", written_.clip_to_image);
        visitor.on_attribute("min_size", written_.min_size);
        visitor.on_attribute("max_detections", written_.max_detections);
        return true;
    }

    void validate_and_infer_types() override {
        attributes_ = kernel_attributes(written_);
        places_ = places_of(written_, get_input_size());
        ov::Dimension batch, anchors, classes;
        require("class_logits", 1, {&batch, &anchors, &classes});
        ov::Dimension box_width = 4;
        if (written_.class_specific_boxes) box_width = classes.is_static() ? classes * 4 : ov::Dimension::dynamic();
        require("box_regression", 0, {&batch, &anchors, &box_width});
        require_number("score_threshold", 2);
        require_number("iou_threshold", 3);
        ov::Dimension two = 2, four = 4;
        if (places_.objectness >= 0) require("objectness", places_.objectness, {&batch, &anchors});
        if (places_.image_size_hw >= 0) require("image_size_hw", places_.image_size_hw, {&batch, &two});
        if (places_.priors >= 0) {
            const bool a_row_for_all = get_input_partial_shape(places_.priors).rank().compatible(2);
            if (a_row_for_all) require("priors", places_.priors, {&anchors, &four});
            if (!a_row_for_all) require("priors", places_.priors, {&batch, &anchors, &four});
        }
        const ov::Dimension top = written_.max_detections;
        set_output_type(0, ov::element::i32, {batch, 1});
        set_output_type(1, ov::element::f32, {batch, top, 4});
        set_output_type(2, ov::element::f32, {batch, top});
        set_output_type(3, ov::element::i32, {batch, top});
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override {
        return std::make_shared<DecodeNMS>(arguments, written_);
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& tensors) const override {
        const ov::Shape shape = tensors[1].get_shape();
        const int64_t batch = signed_size(shape[0]), anchors = signed_size(shape[1]), classes = signed_size(shape[2]);
        const int64_t box_width = written_.class_specific_boxes ? 4 * classes : 4;
        DecodeNmsInputs inputs;
        inputs.batch_size = batch;
        inputs.num_anchors = anchors;
        inputs.num_classes = classes;
        inputs.box_regression = rows_of(tensors[0], anchors * box_width, box_width);
        inputs.class_logits = rows_of(tensors[1], anchors * classes, classes);
        inputs.score_threshold = *tensors[2].data<const float>();
        inputs.iou_threshold = *tensors[3].data<const float>();
        if (places_.objectness >= 0) inputs.objectness = rows_of(tensors[places_.objectness], anchors, 1);
        if (places_.image_size_hw >= 0) inputs.image_size_hw = tensors[places_.image_size_hw].data<const float>();
        if (places_.priors >= 0) {
            const bool for_each_item = tensors[places_.priors].get_shape().size() == 3;
            inputs.priors = rows_of(tensors[places_.priors], for_each_item ? anchors * 4 : 0, 4);
        }
        const size_t top = static_cast<size_t>(written_.max_detections);
        outputs[0].set_shape({shape[0], 1});
        outputs[1].set_shape({shape[0], top, 4});
        outputs[2].set_shape({shape[0], top});
        outputs[3].set_shape({shape[0], top});
        static thread_local boxwright::DecodeNmsWorkspace workspace;
        boxwright::decode_nms(attributes_, inputs,
                              {outputs[0].data<int32_t>(), outputs[1].data<float>(), outputs[2].data<float>(),
                               outputs[3].data<int32_t>()},
                              workspace);
        return true;
    }

   private:
    static int64_t signed_size(size_t size) { return static_cast<int64_t>(size); }

    static AnchorRows rows_of(const ov::Tensor& tensor, int64_t batch_stride, int64_t anchor_stride) {
        return {tensor.data<const float>(), batch_stride, anchor_stride, 1};
    }

    void require_float(const char* name, int place) const {
        const ov::element::Type type = get_input_element_type(place);
        OPENVINO_ASSERT(type == ov::element::f32 || type.is_dynamic(), "DecodeNMS input ", name,
                        ": expected float32, got ", type, "; convert it");
    }

    // Merges what is known of the sizes into `dimensions`.
    void require(const char* name, int place, const std::vector<ov::Dimension*>& dimensions) const {
        require_float(name, place);
        const ov::PartialShape shape = get_input_partial_shape(place);
        if (shape.rank().is_dynamic()) return;
        bool fits = shape.size() == dimensions.size();
        for (size_t axis = 0; fits && axis < dimensions.size(); ++axis) {
            fits = ov::Dimension::merge(*dimensions[axis], *dimensions[axis], shape[axis]);
        }
        if (fits) return;
        ov::PartialShape expected;
        for (const ov::Dimension* dimension : dimensions) expected.push_back(*dimension);
        OPENVINO_THROW("DecodeNMS input ", name, ": expected shape ", expected, ", got ", shape, "; reshape it");
    }

    void require_number(const char* name, int place) const {
        require_float(name, place);
        const ov::PartialShape shape = get_input_partial_shape(place);
        const bool fits = shape.rank().is_dynamic() || shape.size() == 0 || shape.compatible(ov::PartialShape{1});
        OPENVINO_ASSERT(fits, "DecodeNMS input ", name, ": expected one number, got shape ", shape, "; reshape it");
    }

    WrittenAttributes written_;
    DecodeNmsAttributes attributes_;
    InputPlaces places_;
};

// Versions of OpenVINO differ in whether a list of ONNX floats comes as floats or doubles.
void take_list(const ov::frontend::NodeContext& node, const char* name, std::vector<float>& numbers) {
    if (!node.has_attribute(name)) return;
    const ov::Any value = node.get_attribute_as_any(name);
    OPENVINO_ASSERT(!value.is<std::vector<int64_t>>(), "DecodeNMS attribute ", name,
                    ": expected a list of floats, got one of integers; correct the attribute");
    if (value.is<std::vector<double>>()) {
        numbers.clear();
        for (const double number : value.as<std::vector<double>>()) numbers.push_back(static_cast<float>(number));
    } else {
        numbers = value.as<std::vector<float>>();
    }
}

// A node of an ONNX graph; attributes that it leaves out have their defaults.
ov::OutputVector from_onnx(const ov::frontend::NodeContext& node) {
    WrittenAttributes written;
    const auto take = [&node](const char* name, auto& value) {
        value = node.get_attribute<std::decay_t<decltype(value)>>(name, value);
    };
    const auto take_flag = [&node](const char* name, bool& value) {
        const int64_t given = node.get_attribute<int64_t>(name, static_cast<int64_t>(value));
        OPENVINO_ASSERT(given == 0 || given == 1, "DecodeNMS attribute ", name, ": expected 0 or 1, got ", given,
                        "; correct the attribute");
        value = given == 1;
    };
    take("box_coding", written.box_coding);
    take_list(node, "box_weights", written.box_weights);
    take("delta_clip", written.delta_clip);
    take("level_sizes", written.level_sizes);
    take_list(node, "level_strides", written.level_strides);
    take_list(node, "level_scale_xy", written.level_scale_xy);
    take("score_activation", written.score_activation);
    take("objectness_activation", written.objectness_activation);
    take("score_combination", written.score_combination);
    take("background_class", written.background_class);
    take_flag("class_specific_boxes", written.class_specific_boxes);
    take_flag("multi_label", written.multi_label);
    take_flag("with_nms", written.with_nms);
    take_flag("class_agnostic", written.class_agnostic);
    take("overlap", written.overlap);
    take("pre_nms_top_k", written.pre_nms_top_k);
    take("top_k_scope", written.top_k_scope);
    take_flag("clip_to_image", written.clip_to_image);
    take("min_size", written.min_size);
    take("max_detections", written.max_detections);
    ov::OutputVector arguments;
    for (int i = 0; i < static_cast<int>(node.get_input_size()); ++i) arguments.push_back(node.get_input(i));
    return std::make_shared<DecodeNMS>(arguments, std::move(written))->outputs();
}

}  // namespace

namespace boxwright {

// The C++ SDK adds them to its engine without a library of their own.
std::vector<ov::Extension::Ptr> openvino_extensions() {
    return {std::make_shared<ov::OpExtension<DecodeNMS>>(),
            std::make_shared<ov::frontend::onnx::ConversionExtension>("DecodeNMS", "boxwright", from_onnx)};
}

}  // namespace boxwright

OPENVINO_CREATE_EXTENSIONS(boxwright::openvino_extensions())
