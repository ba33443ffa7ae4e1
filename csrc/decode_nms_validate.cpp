// What can be wrong with the attributes and inputs of DecodeNMS, in the words of boxwright/core.
#include <limits>
#include <numeric>
#include <sstream>

#include "decode_nms.h"

namespace boxwright {

namespace {

constexpr int64_t kMostPairs = std::numeric_limits<uint32_t>::max();  // of anchor and class, and of anchors

template <typename Enum>
struct Name {
    const char* text;
    Enum value;
};

constexpr Name<BoxCoding> kCodings[] = {
    {"anchor_delta", BoxCoding::anchor_delta}, {"yolov1", BoxCoding::yolov1}, {"yolov2", BoxCoding::yolov2},
    {"yolov4", BoxCoding::yolov4},             {"yolov5", BoxCoding::yolov5}, {"yolox", BoxCoding::yolox},
    {"distances", BoxCoding::distances},       {"xyxy", BoxCoding::xyxy},     {"cxcywh", BoxCoding::cxcywh}};
constexpr Name<Activation> kActivations[] = {
    {"none", Activation::none}, {"sigmoid", Activation::sigmoid}, {"softmax", Activation::softmax}};
constexpr Name<Combination> kCombinations[] = {
    {"none", Combination::none}, {"multiply", Combination::multiply}, {"sqrt", Combination::sqrt}};
constexpr Name<TopKScope> kScopes[] = {
    {"image", TopKScope::image}, {"level", TopKScope::level}, {"class", TopKScope::class_}};
constexpr Name<Overlap> kOverlaps[] = {{"iou", Overlap::iou}, {"diou", Overlap::diou}};

template <typename Enum, size_t count>
bool find(const Name<Enum> (&names)[count], const std::string& text, Enum& value) {
    for (const Name<Enum>& name : names) {
        if (text == name.text) {
            value = name.value;
            return true;
        }
    }
    return false;
}

template <typename Enum, size_t count>
bool is_known(const Name<Enum> (&names)[count], Enum value) {
    for (const Name<Enum>& name : names) {
        if (name.value == value) return true;
    }
    return false;
}

template <typename Value>
std::string error(const std::string& what, const std::string& expected, const Value& got, const std::string& fix) {
    std::ostringstream text;
    text << what << ": expected " << expected << ", got " << got << "; " << fix;
    return text.str();
}

template <typename Value>
std::string attribute_error(const std::string& name, const std::string& expected, const Value& got) {
    return error("DecodeNMS attribute " + name, expected, got, "correct the attribute");
}

template <typename Value>
std::string input_error(const std::string& name, const std::string& expected, const Value& got) {
    return error("DecodeNMS input " + name, expected, got, "correct it");
}

// NaN is in no range.
bool is_at_least_zero(float value) { return value >= 0.0f; }

std::string validate_levels(const DecodeNmsAttributes& attributes) {
    const size_t num_levels = attributes.level_sizes.size();
    for (const int64_t size : attributes.level_sizes) {
        if (size < 0 || size > kMostPairs) return attribute_error("level_sizes", "numbers from 0 to 2^32", size);
    }
    if (needs_stride(attributes.box_coding) && (num_levels == 0 || attributes.level_strides.size() != num_levels)) {
        return attribute_error("level_strides", "one stride for each of level_sizes, at least one",
                               std::to_string(attributes.level_strides.size()) + " strides for " +
                                   std::to_string(num_levels) + " sizes");
    }
    if (!attributes.level_scale_xy.empty() && attributes.level_scale_xy.size() != num_levels) {
        return attribute_error("level_scale_xy", "one number for each of level_sizes",
                               std::to_string(attributes.level_scale_xy.size()) + " numbers");
    }
    if (attributes.top_k_scope == TopKScope::level && num_levels == 0) {
        return attribute_error("level_sizes", "the size of each level", "none");
    }
    return "";
}

std::string validate_sizes(const DecodeNmsInputs& inputs) {
    if (inputs.batch_size < 0) return input_error("class_logits", "a batch size >= 0", inputs.batch_size);
    if (inputs.num_anchors < 0) return input_error("class_logits", "a number of anchors >= 0", inputs.num_anchors);
    if (inputs.num_classes < 1) return input_error("class_logits", "at least one class", inputs.num_classes);
    if (inputs.num_anchors > kMostPairs / inputs.num_classes) {
        return input_error("class_logits", "N * C below 2^32",
                           std::to_string(inputs.num_anchors) + " * " + std::to_string(inputs.num_classes));
    }
    return "";
}

std::string validate_presence(const DecodeNmsInputs& inputs, const DecodeNmsAttributes& attributes) {
    const bool has_numbers = inputs.batch_size > 0 && inputs.num_anchors > 0;
    if (has_numbers && inputs.class_logits.data == nullptr) return input_error("class_logits", "data", "none");
    if (has_numbers && inputs.box_regression.data == nullptr) return input_error("box_regression", "data", "none");
    const bool combines = attributes.score_combination != Combination::none;
    if (has_numbers && combines != (inputs.objectness.data != nullptr)) {
        return input_error("objectness", combines ? "one for this score_combination" : "none for score_combination none",
                           combines ? "none" : "one");
    }
    const bool takes_numbers_as_they_are =
        attributes.box_coding == BoxCoding::xyxy || attributes.box_coding == BoxCoding::cxcywh;
    if (has_numbers && inputs.priors.data == nullptr && !takes_numbers_as_they_are) {
        return input_error("priors", "priors (N, 4) for this box_coding", "none");
    }
    if (attributes.clip_to_image && inputs.batch_size > 0 && inputs.image_size_hw == nullptr) {
        return input_error("image_size_hw", "sizes (B, 2) for clip_to_image", "none");
    }
    return "";
}

}  // namespace

bool parse(const std::string& name, BoxCoding& coding) { return find(kCodings, name, coding); }
bool parse(const std::string& name, Activation& activation) { return find(kActivations, name, activation); }
bool parse(const std::string& name, Combination& combination) { return find(kCombinations, name, combination); }
bool parse(const std::string& name, TopKScope& scope) { return find(kScopes, name, scope); }
bool parse(const std::string& name, Overlap& overlap) { return find(kOverlaps, name, overlap); }

std::string DecodeNmsAttributes::validate() const {
    if (!is_known(kCodings, box_coding)) {
        return attribute_error("box_coding", "a known coding", static_cast<int>(box_coding));
    }
    if (!is_known(kActivations, score_activation)) {
        return attribute_error("score_activation", "a known activation", static_cast<int>(score_activation));
    }
    if (objectness_activation != Activation::none && objectness_activation != Activation::sigmoid) {
        return attribute_error("objectness_activation", "none or sigmoid", static_cast<int>(objectness_activation));
    }
    if (!is_known(kCombinations, score_combination)) {
        return attribute_error("score_combination", "a known combination", static_cast<int>(score_combination));
    }
    if (!is_known(kScopes, top_k_scope)) {
        return attribute_error("top_k_scope", "a known scope", static_cast<int>(top_k_scope));
    }
    if (!is_known(kOverlaps, overlap)) return attribute_error("overlap", "iou or diou", static_cast<int>(overlap));
    for (const float weight : box_weights) {
        if (!(weight > 0.0f)) return attribute_error("box_weights", "four positive numbers", weight);
    }
    if (!is_at_least_zero(delta_clip)) return attribute_error("delta_clip", "a number >= 0", delta_clip);
    if (background_class < -1) return attribute_error("background_class", "-1 or a class index", background_class);
    if (pre_nms_top_k < 0) return attribute_error("pre_nms_top_k", "a number >= 0", pre_nms_top_k);
    if (!is_at_least_zero(min_size)) return attribute_error("min_size", "a number >= 0", min_size);
    if (max_detections < 1 || max_detections > std::numeric_limits<int32_t>::max()) {
        return attribute_error("max_detections", "a number from 1 to 2^31 - 1", max_detections);
    }
    return validate_levels(*this);
}

std::string DecodeNmsInputs::validate(const DecodeNmsAttributes& attributes) const {
    std::string found = attributes.validate();
    if (found.empty()) found = validate_sizes(*this);
    if (found.empty()) found = validate_presence(*this, attributes);
    if (!found.empty()) return found;
    if (attributes.background_class >= num_classes) {
        return attribute_error("background_class", "an index below " + std::to_string(num_classes),
                               attributes.background_class);
    }
    const bool needs_levels = attributes.top_k_scope == TopKScope::level || needs_stride(attributes.box_coding);
    const int64_t num_in_levels =
        std::accumulate(attributes.level_sizes.begin(), attributes.level_sizes.end(), int64_t{0});
    if (needs_levels && num_in_levels != num_anchors) {
        return attribute_error("level_sizes", "numbers that sum to N = " + std::to_string(num_anchors), num_in_levels);
    }
    if (!(score_threshold >= 0.0f && score_threshold <= 1.0f)) {
        return input_error("score_threshold", "a number in [0, 1]", score_threshold);
    }
    if (!(iou_threshold >= 0.0f && iou_threshold <= 1.0f)) {
        return input_error("iou_threshold", "a number in [0, 1]", iou_threshold);
    }
    return "";
}

}  // namespace boxwright
