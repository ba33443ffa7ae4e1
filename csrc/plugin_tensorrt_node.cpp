#include "plugin_tensorrt_node.h"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <stdexcept>

namespace boxwright {
namespace tensorrt {

namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

[[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got,
                       const std::string& fix) {
    throw std::invalid_argument(what + ": expected " + expected + ", got " + got + "; " + fix);
}

[[noreturn]] void fail_attribute(const std::string& name, const std::string& expected, const std::string& got) {
    fail("DecodeNMS attribute " + name, expected, got, "correct the attribute");
}

struct KnownField {
    const char* name;
    PluginFieldType type;
};

constexpr KnownField kFields[] = {
    {"box_coding", PluginFieldType::kCHAR},
    {"box_weights", PluginFieldType::kFLOAT32},
    {"delta_clip", PluginFieldType::kFLOAT32},
    {"level_sizes", PluginFieldType::kINT32},
    {"level_strides", PluginFieldType::kFLOAT32},
    {"level_scale_xy", PluginFieldType::kFLOAT32},
    {"score_activation", PluginFieldType::kCHAR},
    {"objectness_activation", PluginFieldType::kCHAR},
    {"score_combination", PluginFieldType::kCHAR},
    {"background_class", PluginFieldType::kINT32},
    {"class_specific_boxes", PluginFieldType::kINT32},
    {"multi_label", PluginFieldType::kINT32},
    {"with_nms", PluginFieldType::kINT32},
    {"class_agnostic", PluginFieldType::kINT32},
    {"overlap", PluginFieldType::kCHAR},
    {"pre_nms_top_k", PluginFieldType::kINT32},
    {"top_k_scope", PluginFieldType::kCHAR},
    {"clip_to_image", PluginFieldType::kINT32},
    {"min_size", PluginFieldType::kFLOAT32},
    {"max_detections", PluginFieldType::kINT32},
};
constexpr char kNumInputs[] = "num_inputs";  // in engines alone

size_t size_of(PluginFieldType type) { return type == PluginFieldType::kCHAR ? 1 : 4; }

Field owned(const std::string& name, PluginFieldType type, const void* data, int32_t length) {
    const char* begin = static_cast<const char*>(data);
    return {name, type, length, std::vector<char>(begin, begin + size_of(type) * static_cast<size_t>(length))};
}

// A field's value; where it is not of the type and length that the attribute has, it is an error.
template <typename Number>
std::vector<Number> numbers_of(const PluginField& field) {
    std::vector<Number> numbers(static_cast<size_t>(field.length));
    if (field.length > 0) std::memcpy(numbers.data(), field.data, sizeof(Number) * numbers.size());
    return numbers;
}

template <typename Number>
Number number_of(const PluginField& field) {
    if (field.length != 1) fail_attribute(field.name, "one number", std::to_string(field.length));
    return numbers_of<Number>(field)[0];
}

bool flag_of(const PluginField& field) {
    const int32_t value = number_of<int32_t>(field);
    if (value != 0 && value != 1) fail_attribute(field.name, "0 or 1", std::to_string(value));
    return value == 1;
}

// Parsers of ONNX end text with a zero, others may not.
std::string text_of(const PluginField& field) {
    const char* begin = static_cast<const char*>(field.data);
    return std::string(begin, std::find(begin, begin + field.length, '\0'));
}

template <typename Enum>
void take_name(const PluginField& field, Enum& value) {
    if (!parse(text_of(field), value)) fail_attribute(field.name, "a known name", text_of(field));
}

std::string text_of(const Sizes& sizes) {
    std::string text;
    for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + (size < 0 ? "?" : std::to_string(size));
    return "(" + text + ")";
}

// Merges what is known of the sizes into `expected`.
void require(const char* name, const Sizes& sizes, std::vector<int64_t*> expected) {
    bool fits = sizes.size() == expected.size();
    for (size_t axis = 0; fits && axis < sizes.size(); ++axis) {
        if (*expected[axis] < 0) *expected[axis] = sizes[axis];
        fits = sizes[axis] < 0 || sizes[axis] == *expected[axis];
    }
    if (fits) return;
    Sizes known;
    for (const int64_t* size : expected) known.push_back(*size);
    fail(std::string("DecodeNMS input ") + name, "shape " + text_of(known), text_of(sizes), "reshape it");
}

void require_number(const char* name, const Sizes& sizes) {
    const bool fits = sizes.empty() || (sizes.size() == 1 && (sizes[0] == 1 || sizes[0] < 0));
    if (!fits) fail(std::string("DecodeNMS input ") + name, "one number", "shape " + text_of(sizes), "reshape it");
}

void append(std::string& bytes, const void* data, size_t size) { bytes.append(static_cast<const char*>(data), size); }

void append_number(std::string& bytes, int32_t number) { append(bytes, &number, sizeof number); }

// Hands out the bytes of a serialized node.
class Reader {
   public:
    Reader(const void* data, size_t size) : position_(static_cast<const char*>(data)), left_(size) {}

    bool is_empty() const { return left_ == 0; }

    const char* take(size_t size) {
        if (size > left_) fail("DecodeNMS in an engine", "whole fields", "an end within one", "build the engine again");
        const char* begin = position_;
        position_ += size;
        left_ -= size;
        return begin;
    }

    int32_t take_number() {
        int32_t number;
        std::memcpy(&number, take(sizeof number), sizeof number);
        return number;
    }

    size_t take_length() {
        const int32_t length = take_number();
        if (length < 0) fail("DecodeNMS in an engine", "a length", std::to_string(length), "build the engine again");
        return static_cast<size_t>(length);
    }

   private:
    const char* position_;
    size_t left_;
};

}  // namespace

const nvinfer1::PluginFieldCollection* known_fields() {
    static const std::vector<PluginField> fields = [] {
        std::vector<PluginField> named;
        for (const KnownField& field : kFields) named.emplace_back(field.name, nullptr, field.type, 1);
        return named;
    }();
    static const nvinfer1::PluginFieldCollection collection = {static_cast<int32_t>(fields.size()), fields.data()};
    return &collection;
}

void Node::take(const PluginField& field) {
    const std::string name = field.name;
    if (name == "box_coding") return take_name(field, attributes_.box_coding);
    if (name == "delta_clip") attributes_.delta_clip = number_of<float>(field);
    if (name == "level_strides") attributes_.level_strides = numbers_of<float>(field);
    if (name == "level_scale_xy") attributes_.level_scale_xy = numbers_of<float>(field);
    if (name == "score_activation") return take_name(field, attributes_.score_activation);
    if (name == "objectness_activation") return take_name(field, attributes_.objectness_activation);
    if (name == "score_combination") return take_name(field, attributes_.score_combination);
    if (name == "background_class") attributes_.background_class = number_of<int32_t>(field);
    if (name == "class_specific_boxes") attributes_.class_specific_boxes = flag_of(field);
    if (name == "multi_label") attributes_.multi_label = flag_of(field);
    if (name == "with_nms") attributes_.with_nms = flag_of(field);
    if (name == "class_agnostic") attributes_.class_agnostic = flag_of(field);
    if (name == "overlap") return take_name(field, attributes_.overlap);
    if (name == "pre_nms_top_k") attributes_.pre_nms_top_k = number_of<int32_t>(field);
    if (name == "top_k_scope") return take_name(field, attributes_.top_k_scope);
    if (name == "clip_to_image") attributes_.clip_to_image = flag_of(field);
    if (name == "min_size") attributes_.min_size = number_of<float>(field);
    if (name == "max_detections") attributes_.max_detections = number_of<int32_t>(field);
    if (name == "level_sizes") {
        const std::vector<int32_t> sizes = numbers_of<int32_t>(field);
        attributes_.level_sizes.assign(sizes.begin(), sizes.end());
    }
    if (name == "box_weights") {
        const std::vector<float> weights = numbers_of<float>(field);
        if (weights.size() != 4) fail_attribute(name, "four numbers", std::to_string(weights.size()));
        std::copy(weights.begin(), weights.end(), attributes_.box_weights);
    }
}

Node Node::from_fields(const PluginField* fields, int32_t count) {
    Node node;
    for (int32_t i = 0; i < count; ++i) {
        const PluginField& field = fields[i];
        if (field.name == nullptr) fail("DecodeNMS field", "a name", "none", "name it");
        if (field.data == nullptr && field.length > 0) fail_attribute(field.name, "a value", "none");
        if (field.length < 0) fail_attribute(field.name, "a length", std::to_string(field.length));
        const bool is_of_engine = std::strcmp(field.name, kNumInputs) == 0;
        const KnownField* known = std::find_if(std::begin(kFields), std::end(kFields), [&](const KnownField& candidate) {
            return std::strcmp(candidate.name, field.name) == 0;
        });
        if (known == std::end(kFields) && !is_of_engine) {
            fail("DecodeNMS", "attributes of the operator", std::string("an unknown one, ") + field.name, "remove it");
        }
        const PluginFieldType expected = is_of_engine ? PluginFieldType::kINT32 : known->type;
        if (field.type != expected) {
            fail_attribute(field.name, "plugin field type " + std::to_string(static_cast<int>(expected)),
                           std::to_string(static_cast<int>(field.type)));
        }
        if (is_of_engine) {
            node.num_inputs_ = number_of<int32_t>(field);
        } else {
            node.take(field);
            node.fields_.push_back(owned(field.name, field.type, field.data, field.length));
        }
    }
    const std::string error = node.attributes_.validate();
    if (!error.empty()) throw std::invalid_argument(error);
    if (node.num_inputs_ != 0) node.places(node.num_inputs_);
    return node;
}

std::vector<Field> Node::to_fields() const {
    std::vector<Field> fields = fields_;
    fields.push_back(owned(kNumInputs, PluginFieldType::kINT32, &num_inputs_, 1));
    return fields;
}

// Of each field: the length of its name, its name, its type, its length, its numbers or letters.
std::string Node::to_bytes() const {
    std::string bytes;
    for (const Field& field : to_fields()) {
        append_number(bytes, static_cast<int32_t>(field.name.size()));
        append(bytes, field.name.data(), field.name.size());
        append_number(bytes, static_cast<int32_t>(field.type));
        append_number(bytes, field.length);
        append(bytes, field.data.data(), field.data.size());
    }
    return bytes;
}

Node Node::from_bytes(const void* data, size_t size) {
    Reader reader(data, size);
    std::vector<Field> fields;
    while (!reader.is_empty()) {
        const size_t name_length = reader.take_length();
        const std::string name(reader.take(name_length), name_length);
        const auto type = static_cast<PluginFieldType>(reader.take_number());
        const size_t length = reader.take_length();
        fields.push_back(owned(name, type, reader.take(length * size_of(type)), static_cast<int32_t>(length)));
    }
    if (fields.empty() || fields.back().name != kNumInputs) {
        fail("DecodeNMS in an engine", "the number of inputs at the end", "none", "build the engine again");
    }
    std::vector<PluginField> views;
    for (const Field& field : fields) views.push_back(field.view());
    return from_fields(views.data(), static_cast<int32_t>(views.size()));
}

Node::Places Node::places(int32_t num_inputs) const {
    Places places;
    int32_t next = 4;
    if (attributes_.score_combination != Combination::none) places.objectness = next++;
    if (attributes_.clip_to_image) places.image_size_hw = next++;
    const bool needs_priors =
        attributes_.box_coding != BoxCoding::xyxy && attributes_.box_coding != BoxCoding::cxcywh;
    if (num_inputs == next + 1) places.priors = next;
    if (num_inputs != next + 1 && (needs_priors || num_inputs != next)) {
        fail("DecodeNMS", std::to_string(next + (needs_priors ? 1 : 0)) + " inputs for these attributes",
             std::to_string(num_inputs), "connect them all");
    }
    return places;
}

void Node::set_num_inputs(int32_t num_inputs) {
    places(num_inputs);
    num_inputs_ = num_inputs;
}

void Node::require_shapes(const std::vector<Sizes>& shapes) const {
    const Places where = places(static_cast<int32_t>(shapes.size()));
    const auto shape_at = [&](int32_t place) -> const Sizes& { return shapes[static_cast<size_t>(place)]; };
    int64_t batch = -1, anchors = -1, classes = -1, two = 2, four = 4;
    require("class_logits", shapes[1], {&batch, &anchors, &classes});
    int64_t box_width = 4;
    if (attributes_.class_specific_boxes) box_width = classes < 0 ? -1 : 4 * classes;
    require("box_regression", shapes[0], {&batch, &anchors, &box_width});
    require_number("score_threshold", shapes[2]);
    require_number("iou_threshold", shapes[3]);
    if (where.objectness >= 0) require("objectness", shape_at(where.objectness), {&batch, &anchors});
    if (where.image_size_hw >= 0) require("image_size_hw", shape_at(where.image_size_hw), {&batch, &two});
    if (where.priors >= 0) {
        if (shape_at(where.priors).size() == 2) {
            require("priors", shape_at(where.priors), {&anchors, &four});
        } else {
            require("priors", shape_at(where.priors), {&batch, &anchors, &four});
        }
    }
    if (batch < 0 || anchors < 0 || classes < 0) return;
    // What sizes and attributes make together; the pointers are not looked at.
    const float anything = 0.0f;
    DecodeNmsCudaInputs inputs;
    inputs.batch_size = batch;
    inputs.num_anchors = anchors;
    inputs.num_classes = classes;
    inputs.box_regression.data = inputs.class_logits.data = &anything;
    if (where.objectness >= 0) inputs.objectness.data = &anything;
    if (where.priors >= 0) inputs.priors = &anything;
    if (where.image_size_hw >= 0) inputs.image_size_hw = &anything;
    const std::string error = inputs.validate(attributes_);
    if (!error.empty()) throw std::invalid_argument(error);
}

bool Node::supports(int32_t place, const nvinfer1::PluginTensorDesc* tensors, int32_t num_inputs) const {
    const nvinfer1::PluginTensorDesc& tensor = tensors[place];
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
    if (place >= num_inputs) {
        const int32_t output = place - num_inputs;
        return tensor.type == (output == 0 || output == 3 ? DataType::kINT32 : DataType::kFLOAT);
    }
    // Heads come in either precision. Priors, sizes and thresholds need every digit.
    const bool is_head =
        place < 2 || (place == 4 && attributes_.score_combination != Combination::none);
    return tensor.type == DataType::kFLOAT || (is_head && tensor.type == DataType::kHALF);
}

size_t Node::workspace_size(const nvinfer1::Dims& class_logits) const {
    return decode_nms_cuda_workspace_size(attributes_, class_logits.d[0], class_logits.d[1], class_logits.d[2]);
}

int Node::enqueue(const nvinfer1::PluginTensorDesc* descriptions, const void* const* inputs, void* const* outputs,
                  void* workspace, CUstream_st* stream) const {
    if (num_inputs_ == 0) fail("DecodeNMS", "a node that was configured", "one that was not", "build the engine again");
    const Places where = places(num_inputs_);
    const auto head_at = [&](int32_t place) -> DeviceHead {
        return {inputs[place],
                descriptions[place].type == DataType::kHALF ? HeadType::float16 : HeadType::float32};
    };
    const auto floats_at = [&](int32_t place) { return static_cast<const float*>(inputs[place]); };
    DecodeNmsCudaInputs taken;
    taken.batch_size = descriptions[1].dims.d[0];
    taken.num_anchors = descriptions[1].dims.d[1];
    taken.num_classes = descriptions[1].dims.d[2];
    taken.box_regression = head_at(0);
    taken.class_logits = head_at(1);
    taken.score_threshold = floats_at(2);
    taken.iou_threshold = floats_at(3);
    if (where.objectness >= 0) taken.objectness = head_at(where.objectness);
    if (where.image_size_hw >= 0) taken.image_size_hw = floats_at(where.image_size_hw);
    if (where.priors >= 0) {
        taken.priors = floats_at(where.priors);
        taken.has_priors_for_each_item = descriptions[where.priors].dims.nbDims == 3;
    }
    return decode_nms_cuda_enqueue(attributes_, taken,
                                   {static_cast<int32_t*>(outputs[0]), static_cast<float*>(outputs[1]),
                                    static_cast<float*>(outputs[2]), static_cast<int32_t*>(outputs[3])},
                                   workspace, stream);
}

}  // namespace tensorrt
}  // namespace boxwright
