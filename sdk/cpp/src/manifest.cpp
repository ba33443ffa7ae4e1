#include "manifest.h"

#include <algorithm>
#include <cmath>

#include "boxwright/detector.hpp"
#include "json.h"

namespace boxwright {

namespace {

constexpr long long kSchemaVersion = 1;
constexpr int64_t kMinSide = 2;

[[noreturn]] void unsupported(const std::string& what, const std::string& expected, const std::string& got) {
    throw Error("manifest." + what + ": expected " + expected + ", got " + got + "; export the model for the C++ SDK");
}

void require_one_of(const std::string& what, const std::string& got, const std::vector<std::string>& names) {
    if (std::find(names.begin(), names.end(), got) != names.end()) return;
    std::string expected;
    for (const std::string& name : names) expected += (expected.empty() ? "" : " or ") + name;
    unsupported(what, expected, got);
}

template <typename Enum>
void parse_name(const json::Value& value, const char* key, Enum& result) {
    if (!parse(value.text_at(key), result)) unsupported(std::string("decode.") + key, "a known name", value.text_at(key));
}

// What the graph does itself need not be known here.
Preprocess read_preprocess(const json::Value& value, bool is_in_graph) {
    value.require_only("preprocess", {"size_hw", "resize", "pad_value", "channel_order", "scale", "mean", "std",
                                      "shortest_edge", "max_size", "divisor", "pixel_mask", "interpolation",
                                      "resize_in_float"});
    if (value.at("size_hw").is_null()) unsupported("preprocess.size_hw", "a fixed size", "none");
    if (value.boolean_at("pixel_mask") && !is_in_graph) unsupported("preprocess.pixel_mask", "false", "true");
    if (value.boolean_at("resize_in_float") && !is_in_graph) unsupported("preprocess.resize_in_float", "false", "true");
    if (value.text_at("interpolation") != "linear" && !is_in_graph) {
        unsupported("preprocess.interpolation", "linear", value.text_at("interpolation"));
    }
    Preprocess preprocess;
    const std::vector<double> size_hw = value.numbers_at("size_hw", 2);
    preprocess.height = static_cast<int64_t>(size_hw[0]);
    preprocess.width = static_cast<int64_t>(size_hw[1]);
    preprocess.resize = value.text_at("resize");
    const char* const modes[] = {"letterbox", "letterbox_topleft", "stretch", "shortest_edge"};
    if (std::find(std::begin(modes), std::end(modes), preprocess.resize) == std::end(modes)) {
        unsupported("preprocess.resize", "a known mode", preprocess.resize);
    }
    preprocess.shortest_edge = value.integer_at("shortest_edge");
    preprocess.max_size = value.integer_at("max_size");
    LetterboxParameters& fixed = preprocess.fixed;
    fixed.height = preprocess.height;
    fixed.width = preprocess.width;
    fixed.swap_channels = value.text_at("channel_order") == "RGB";
    const std::vector<double> pad = value.numbers_at("pad_value", 3), mean = value.numbers_at("mean", 3),
                              deviation = value.numbers_at("std", 3);
    const double scale = value.number_at("scale");
    for (size_t channel = 0; channel < 3; ++channel) {
        fixed.pad_value[channel] = static_cast<float>(pad[channel]);
        fixed.scale[channel] = static_cast<float>(scale / deviation[channel]);
        fixed.bias[channel] = static_cast<float>(-mean[channel] / deviation[channel]);
    }
    return preprocess;
}

// Reference points and scales of a grid's cells, in the order of level, row, column, anchor.
void append_grid(const json::Value& level, std::vector<float>& priors, DecodeNmsAttributes& attributes, bool is_grid) {
    level.require_only("decode.levels", {"grid_hw", "stride", "anchors_wh", "offset", "scale_xy", "step_hw"});
    const std::vector<double> grid_hw = level.numbers_at("grid_hw", 2);
    const float stride = static_cast<float>(level.number_at("stride"));
    const float offset = static_cast<float>(level.number_at("offset"));
    std::vector<double> step_hw = {stride, stride};
    // Files of before this key have none.
    const json::Value* given_step = level.find("step_hw");
    if (given_step != nullptr && !given_step->is_null()) step_hw = level.numbers_at("step_hw", 2);
    std::vector<std::vector<double>> anchors_wh;
    for (const json::Value& anchor : level.list_at("anchors_wh")) {
        if (anchor.items.size() != 2) unsupported("decode.levels.anchors_wh", "pairs", "another number");
        anchors_wh.push_back({anchor.items[0].number, anchor.items[1].number});
    }
    if (anchors_wh.empty()) anchors_wh.push_back({stride, stride});
    const size_t num_before = priors.size();
    for (int64_t row = 0; row < static_cast<int64_t>(grid_hw[0]); ++row) {
        for (int64_t column = 0; column < static_cast<int64_t>(grid_hw[1]); ++column) {
            for (const std::vector<double>& anchor : anchors_wh) {
                priors.push_back((static_cast<float>(column) + offset) * static_cast<float>(step_hw[1]));
                priors.push_back((static_cast<float>(row) + offset) * static_cast<float>(step_hw[0]));
                priors.push_back(static_cast<float>(anchor[0]));
                priors.push_back(static_cast<float>(anchor[1]));
            }
        }
    }
    attributes.level_sizes.push_back(static_cast<int64_t>((priors.size() - num_before) / 4));
    if (is_grid) {
        attributes.level_strides.push_back(stride);
        attributes.level_scale_xy.push_back(static_cast<float>(level.number_at("scale_xy")));
    }
}

void append_anchors(const json::Value& level, std::vector<float>& priors, DecodeNmsAttributes& attributes) {
    level.require_only("decode.levels", {"grid_hw", "stride_hw", "cell_boxes_xyxy", "offset"});
    const std::vector<double> grid_hw = level.numbers_at("grid_hw", 2), stride_hw = level.numbers_at("stride_hw", 2);
    const float offset = static_cast<float>(level.number_at("offset"));
    const size_t num_before = priors.size();
    for (int64_t row = 0; row < static_cast<int64_t>(grid_hw[0]); ++row) {
        for (int64_t column = 0; column < static_cast<int64_t>(grid_hw[1]); ++column) {
            const float x = (static_cast<float>(column) + offset) * static_cast<float>(stride_hw[1]);
            const float y = (static_cast<float>(row) + offset) * static_cast<float>(stride_hw[0]);
            for (const json::Value& box : level.list_at("cell_boxes_xyxy")) {
                if (box.items.size() != 4) unsupported("decode.levels.cell_boxes_xyxy", "four numbers", "another number");
                for (size_t side = 0; side < 4; ++side) {
                    priors.push_back((side % 2 == 0 ? x : y) + static_cast<float>(box.items[side].number));
                }
            }
        }
    }
    attributes.level_sizes.push_back(static_cast<int64_t>((priors.size() - num_before) / 4));
}

void read_kind(const json::Value& value, Manifest& manifest) {
    DecodeNmsAttributes& attributes = manifest.attributes;
    const std::string& kind = value.text_at("kind");
    if (kind == "grid" || kind == "distances" || kind == "peaks") {
        if (kind == "grid") parse_name(value, "box_coding", attributes.box_coding);
        if (kind == "distances") attributes.box_coding = BoxCoding::distances;
        if (kind == "peaks") attributes.box_coding = BoxCoding::cxcywh;
        for (const json::Value& level : value.list_at("levels")) {
            append_grid(level, manifest.priors, attributes, kind == "grid");
        }
    } else if (kind == "anchor_deltas") {
        attributes.box_coding = BoxCoding::anchor_delta;
        const std::vector<double> weights = value.numbers_at("box_weights", 4);
        for (size_t i = 0; i < 4; ++i) attributes.box_weights[i] = static_cast<float>(weights[i]);
        attributes.delta_clip = static_cast<float>(value.number_at("delta_clip"));
        attributes.class_specific_boxes = value.boolean_at("class_specific_boxes");
        for (const json::Value& level : value.list_at("levels")) append_anchors(level, manifest.priors, attributes);
    } else if (kind == "queries" || kind == "boxes") {
        parse_name(value, "box_format", attributes.box_coding);
        if (kind == "queries" && !value.at("scale_wh").is_null()) {
            const std::vector<double> scale_wh = value.numbers_at("scale_wh", 2);
            for (long long query = 0; query < value.integer_at("num_queries"); ++query) {
                const float width = static_cast<float>(scale_wh[0]), height = static_cast<float>(scale_wh[1]);
                manifest.priors.insert(manifest.priors.end(), {0.0f, 0.0f, width, height});
            }
        }
    } else {
        unsupported("decode.kind", "a known kind", kind);
    }
}

void read_decode(const json::Value& value, Manifest& manifest) {
    value.require_only("decode", {"kind", "num_classes", "score_activation", "objectness_activation", "score_combination",
                                  "background_class", "multi_label", "max_detections", "nms", "clip_to_image", "levels",
                                  "box_weights", "delta_clip", "class_specific_boxes", "box_coding", "num_queries",
                                  "box_format", "scale_wh"});
    DecodeNmsAttributes& attributes = manifest.attributes;
    parse_name(value, "score_activation", attributes.score_activation);
    parse_name(value, "objectness_activation", attributes.objectness_activation);
    parse_name(value, "score_combination", attributes.score_combination);
    attributes.background_class = value.integer_at("background_class");
    attributes.multi_label = value.boolean_at("multi_label");
    attributes.clip_to_image = value.boolean_at("clip_to_image");
    attributes.max_detections = value.integer_at("max_detections");
    const json::Value& nms = value.at("nms");
    manifest.has_nms = attributes.with_nms = !nms.is_null();
    attributes.pre_nms_top_k = attributes.max_detections;
    if (manifest.has_nms) {
        nms.require_only("decode.nms", {"class_agnostic", "overlap", "pre_nms_top_k", "top_k_scope", "min_size"});
        attributes.class_agnostic = nms.boolean_at("class_agnostic");
        parse_name(nms, "overlap", attributes.overlap);
        attributes.pre_nms_top_k = nms.integer_at("pre_nms_top_k");
        parse_name(nms, "top_k_scope", attributes.top_k_scope);
        attributes.min_size = static_cast<float>(nms.number_at("min_size"));
    }
    read_kind(value, manifest);
    const std::string error = attributes.validate();
    if (!error.empty()) throw Error(error);
}

}  // namespace

Manifest read_manifest(const std::string& text) {
    const json::Value document = json::parse(text);
    // What lies beside a TensorRT engine describes the engine, and has the manifest inside.
    const bool is_sidecar = document.kind == json::Value::Kind::object && document.find("engine_sha256") != nullptr;
    const json::Value& value = is_sidecar ? document.at("manifest") : document;
    if (value.kind == json::Value::Kind::object && value.integer_at("schema_version") > kSchemaVersion) {
        throw Error("manifest.schema_version: expected at most " + std::to_string(kSchemaVersion) +
                    ", got a newer one; update boxwright");
    }
    value.require_only("(top)", {"family", "variant", "class_names", "preprocess", "decode", "stage", "precision",
                                 "input_kind", "score_threshold", "iou_threshold", "source_sha256", "boxwright_version",
                                 "calibration", "verification", "schema_version"});
    Manifest manifest;
    for (const json::Value& name : value.list_at("class_names")) manifest.class_names.push_back(name.text);
    require_one_of("input_kind", value.text_at("input_kind"), {"tensor", "pixels"});
    require_one_of("stage", value.text_at("stage"), {"raw", "boxes", "detections"});
    manifest.takes_pixels = value.text_at("input_kind") == "pixels";
    manifest.gives_detections = value.text_at("stage") == "detections";
    manifest.preprocess = read_preprocess(value.at("preprocess"), manifest.takes_pixels);
    read_decode(value.at("decode"), manifest);
    const long long num_classes = value.at("decode").integer_at("num_classes");
    if (num_classes != static_cast<long long>(manifest.class_names.size())) {
        unsupported("class_names", std::to_string(num_classes) + " names", std::to_string(manifest.class_names.size()));
    }
    manifest.score_threshold = static_cast<float>(value.number_at("score_threshold"));
    manifest.iou_threshold = static_cast<float>(value.number_at("iou_threshold"));
    return manifest;
}

LetterboxParameters Preprocess::plan(int64_t image_height, int64_t image_width) const {
    const auto too_small = [&](int64_t rows, int64_t columns) { return std::min(rows, columns) < kMinSide; };
    const std::string got = std::to_string(image_width) + "x" + std::to_string(image_height);
    if (too_small(image_height, image_width)) {
        throw Error("image: expected at least 2x2 pixels, got " + got + "; give a larger one");
    }
    const double rows = static_cast<double>(image_height), columns = static_cast<double>(image_width);
    const double fitting = std::min(static_cast<double>(height) / rows, static_cast<double>(width) / columns);
    const auto truncated = [](double side) { return static_cast<int64_t>(side + 1e-6); };
    LetterboxParameters result = fixed;
    if (resize == "stretch") {
        result.resized_height = height;
        result.resized_width = width;
    } else if (resize == "letterbox") {
        // To even at the half, as Python rounds.
        result.resized_height = std::max<int64_t>(1, static_cast<int64_t>(std::nearbyint(rows * fitting)));
        result.resized_width = std::max<int64_t>(1, static_cast<int64_t>(std::nearbyint(columns * fitting)));
        result.top = (height - result.resized_height) / 2;
        result.left = (width - result.resized_width) / 2;
    } else if (resize == "letterbox_topleft") {
        result.resized_height = std::max<int64_t>(1, truncated(rows * fitting));
        result.resized_width = std::max<int64_t>(1, truncated(columns * fitting));
    } else {
        const double wanted = std::min(static_cast<double>(shortest_edge) / std::min(rows, columns),
                                       static_cast<double>(max_size) / std::max(rows, columns));
        const bool fits = truncated(rows * wanted) <= height && truncated(columns * wanted) <= width;
        const double ratio = fits ? wanted : fitting;
        result.resized_height = truncated(rows * ratio);
        result.resized_width = truncated(columns * ratio);
    }
    if (too_small(result.resized_height, result.resized_width)) {
        throw Error("image: expected a shape that leaves at least 2 pixels a side, got " + got + "; cut it into tiles");
    }
    return result;
}

}  // namespace boxwright
