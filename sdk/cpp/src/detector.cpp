// boxwright::Detector over whichever engine was compiled in.
#include "boxwright/detector.hpp"

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "decode_nms.h"
#include "engine.h"
#include "letterbox.h"
#include "manifest.h"

namespace boxwright {

namespace {

#if defined(BOXWRIGHT_WITH_OPENVINO) && defined(BOXWRIGHT_WITH_ONNXRUNTIME)
constexpr const char* kOtherEngines = "OpenVINO or ONNX Runtime";
#elif defined(BOXWRIGHT_WITH_OPENVINO)
constexpr const char* kOtherEngines = "OpenVINO";
#elif defined(BOXWRIGHT_WITH_ONNXRUNTIME)
constexpr const char* kOtherEngines = "ONNX Runtime";
#else
constexpr const char* kOtherEngines = "TensorRT";
#endif

[[maybe_unused]] bool is_onnx(const std::string& path) { return path.size() >= 5 && path.compare(path.size() - 5, 5, ".onnx") == 0; }

bool is_tensorrt(const std::string& path) {
    const std::string suffix = std::filesystem::path(path).extension().string();
    return suffix == ".engine" || suffix == ".plan";
}

std::unique_ptr<Engine> open_engine(const std::string& path, const Options& options) {
    std::string names;
#ifdef BOXWRIGHT_WITH_TENSORRT
    names = "tensorrt";
    if (is_tensorrt(path) && (options.engine == "tensorrt" || options.engine.empty())) return open_tensorrt(path, options);
    if (options.engine == "tensorrt") {
        throw Error(path + ": expected an engine (.engine, .plan) for TensorRT, got another; build it with boxwright export "
                           "--format tensorrt, or with trtexec");
    }
#endif
    if (is_tensorrt(path) && options.engine.empty()) {
        throw Error(path + ": expected a file for " + kOtherEngines + ", which this library has, got a TensorRT engine; "
                           "build the library where TensorRT is, or pass the .onnx that it was made from");
    }
#ifdef BOXWRIGHT_WITH_OPENVINO
    names += names.empty() ? "openvino" : " or openvino";
    if (options.engine == "openvino" || options.engine.empty()) return open_openvino(path, options);
#endif
#ifdef BOXWRIGHT_WITH_ONNXRUNTIME
    names += names.empty() ? "onnxruntime" : " or onnxruntime";
    if (options.engine == "onnxruntime" || options.engine.empty()) {
        if (is_onnx(path)) return open_onnxruntime(path, options);
        throw Error(path + ": expected an ONNX file for ONNX Runtime, got another; pass the .onnx that it was made from");
    }
#endif
    throw Error("engine: expected " + names + ", which this library has, got " + options.engine + "; pass one of these");
}

float threshold(const char* name, const std::optional<float>& given, float of_manifest) {
    const float value = given.value_or(of_manifest);
    if (!(value >= 0.0f && value <= 1.0f)) {
        throw Error(std::string(name) + ": expected a number in [0, 1], got " + std::to_string(value) + "; correct it");
    }
    return value;
}

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text;
    for (const int64_t side : shape) text += (text.empty() ? "" : ", ") + (side < 0 ? "?" : std::to_string(side));
    return "(" + text + ")";
}

bool is_compatible(const std::vector<int64_t>& shape, const std::vector<int64_t>& expected) {
    if (shape.size() != expected.size()) return false;
    for (size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] >= 0 && expected[i] >= 0 && shape[i] != expected[i]) return false;
    }
    return true;
}

// Throws where an output has another shape than the manifest makes one expect; -1 stands for any side.
template <typename Element>
void check_shape(const char* name, const Tensor<Element>& tensor, const std::vector<int64_t>& expected) {
    if (is_compatible(tensor.shape, expected)) return;
    throw Error(std::string("model: expected the output ") + name + " of shape " + shape_text(expected) + ", got " +
                shape_text(tensor.shape) + "; export it again");
}

}  // namespace

std::string read_model_file(const std::string& path) {
    std::string content;
    std::error_code is_missing;
    if (std::filesystem::is_regular_file(path, is_missing)) {
        std::ifstream file(path, std::ios::binary);
        content.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    if (content.empty()) throw Error(path + ": expected a model file, got none or an empty one; check the path");
    return content;
}

struct Detector::Implementation {
    std::unique_ptr<Engine> engine;
    Manifest manifest;
    float score_threshold = 0.0f;
    float iou_threshold = 0.0f;
    // Used again for every image, so that a steady state allocates nothing here.
    std::vector<float> canvas;
    std::vector<uint8_t> pixels;
    LetterboxWorkspace letterbox_workspace;
    DecodeNmsWorkspace decode_workspace;
    std::vector<int32_t> num_detections, class_ids;
    std::vector<float> boxes, scores;

    Implementation(const std::string& path, const Options& options) : engine(open_engine(path, options)) {
        const std::string text = engine->manifest();
        if (text.empty()) {
            throw Error(path + ": expected a model with Boxwright's manifest inside, got none; "
                               "write it with boxwright export");
        }
        manifest = read_manifest(text);
        score_threshold = threshold("score_threshold", options.score_threshold, manifest.score_threshold);
        iou_threshold = threshold("iou_threshold", options.iou_threshold, manifest.iou_threshold);
        check_outputs(path);
        check_image_input(path);
        for (const char* name : kThresholds) {
            const float value = name == kThresholds[0] ? score_threshold : iou_threshold;
            if (engine->has_threshold(name)) engine->set_threshold(name, value);
        }
        check_built_in(path, "score_threshold", score_threshold < manifest.score_threshold, manifest.score_threshold);
        check_built_in(path, "iou_threshold", manifest.has_nms && iou_threshold != manifest.iou_threshold,
                       manifest.iou_threshold);
    }

    // What scores less than asked for can be left out afterwards; what a built-in threshold dropped is lost.
    void check_built_in(const std::string& path, const std::string& name, bool is_lost, float built_in) const {
        if (!is_lost || !manifest.gives_detections || engine->has_threshold(name)) return;
        throw Error(path + ": expected a model whose " + name + " can be set, got one with a built-in " + name + " of " +
                    std::to_string(built_in) + "; leave it out, or export the model with it");
    }

    void check_outputs(const std::string& path) const {
        std::vector<std::string> names = {"num_detections", "boxes", "scores", "class_ids"};
        if (!manifest.gives_detections) names = {"box_regression", "class_logits"};
        if (!manifest.gives_detections && manifest.attributes.score_combination != Combination::none) {
            names.push_back("objectness");
        }
        for (const std::string& name : names) {
            if (!engine->has_output(name)) {
                throw Error(path + ": expected the output " + name + ", got a model without it; export it again");
            }
        }
    }

    void check_image_input(const std::string& path) const {
        const Preprocess& preprocess = manifest.preprocess;
        std::vector<int64_t> expected = {1, 3, preprocess.height, preprocess.width};
        if (manifest.takes_pixels) expected = {1, -1, -1, 3};
        const ElementType type = manifest.takes_pixels ? ElementType::uint8 : ElementType::float32;
        const ImageInput input = engine->image_input();
        if (input.type != type || !is_compatible(input.shape, expected)) {
            throw Error(path + ": expected an input images " + shape_text(expected) + " of " +
                        (manifest.takes_pixels ? "bytes" : "float32") + ", got " + shape_text(input.shape) +
                        "; export it again with --batch 1");
        }
    }

    std::vector<Detection> detect(const Image& image) {
        check_image(image);
        const LetterboxParameters placed = manifest.preprocess.plan(image.height, image.width);
        const ptrdiff_t stride = image.row_stride != 0 ? image.row_stride : static_cast<ptrdiff_t>(image.width * 3);
        if (manifest.takes_pixels) {
            take_pixels(image, stride);
        } else {
            canvas.resize(static_cast<size_t>(3 * placed.height * placed.width));
            letterbox({image.data, image.height, image.width, stride}, placed, canvas.data(), letterbox_workspace);
            engine->set_image(canvas.data(), {1, 3, placed.height, placed.width});
        }
        engine->run();
        return manifest.gives_detections ? read_detections(placed, image) : decode(placed, image);
    }

    static void check_image(const Image& image) {
        const bool has_sides = image.height >= 1 && image.height <= kMaxSide && image.width >= 1 && image.width <= kMaxSide;
        if (image.data == nullptr || !has_sides) {
            throw Error("image: expected pixels with sides of 1 to " + std::to_string(kMaxSide) + ", got " +
                        (image.data == nullptr ? "none" : std::to_string(image.width) + "x" + std::to_string(image.height)) +
                        "; give another image");
        }
        // Rows from the bottom up have a negative stride.
        if (image.row_stride != 0 && std::abs(image.row_stride) < image.width * 3) {
            throw Error("image: expected a row_stride of at least " + std::to_string(image.width * 3) + " bytes, got " +
                        std::to_string(image.row_stride) + "; pass 0 where the rows lie side by side");
        }
    }

    void take_pixels(const Image& image, ptrdiff_t stride) {
        const size_t row_bytes = static_cast<size_t>(image.width) * 3;
        pixels.resize(static_cast<size_t>(image.height) * row_bytes);
        for (int64_t row = 0; row < image.height; ++row) {
            std::memcpy(&pixels[static_cast<size_t>(row) * row_bytes], image.data + row * stride, row_bytes);
        }
        engine->set_image(pixels.data(), {1, image.height, image.width, 3});
    }

    std::vector<Detection> read_detections(const LetterboxParameters& placed, const Image& image) {
        const Tensor<int32_t> count = engine->integers("num_detections"), classes = engine->integers("class_ids");
        const Tensor<float> found = engine->floats("boxes"), of_boxes = engine->floats("scores");
        check_shape("num_detections", count, {1, 1});
        check_shape("boxes", found, {1, -1, 4});
        check_shape("scores", of_boxes, {1, found.shape[1]});
        check_shape("class_ids", classes, {1, found.shape[1]});
        if (*count.data < 0 || *count.data > found.shape[1]) {
            throw Error("model: expected a number of detections that there is room for, got " +
                        std::to_string(*count.data) + "; export it again");
        }
        // For a model whose thresholds are built in; where they are inputs, all of them score more already.
        int32_t kept = *count.data;
        while (kept > 0 && !(of_boxes.data[kept - 1] > score_threshold)) --kept;
        return to_image(kept, found.data, of_boxes.data, classes.data, placed, image);
    }

    AnchorRows rows(const char* name, const std::vector<int64_t>& shape) {
        const Tensor<float> tensor = engine->floats(name);
        check_shape(name, tensor, shape);
        const bool has_columns = shape.size() > 2 || std::strcmp(name, "priors") == 0;
        return {tensor.data, tensor.size(), has_columns ? shape.back() : 1, 1};
    }

    std::vector<Detection> decode(const LetterboxParameters& placed, const Image& image) {
        const DecodeNmsAttributes& attributes = manifest.attributes;
        const Tensor<float> logits = engine->floats("class_logits");
        check_shape("class_logits", logits, {1, manifest.num_anchors(), manifest.num_logits()});
        const int64_t num_anchors = logits.shape[1], num_logits = logits.shape[2];
        DecodeNmsInputs inputs;
        inputs.batch_size = 1;
        inputs.num_anchors = num_anchors;
        inputs.num_classes = num_logits;
        inputs.class_logits = rows("class_logits", {1, num_anchors, num_logits});
        inputs.box_regression =
            rows("box_regression", {1, num_anchors, attributes.class_specific_boxes ? 4 * num_logits : 4});
        if (attributes.score_combination != Combination::none) inputs.objectness = rows("objectness", {1, num_anchors});
        if (!manifest.priors.empty()) {
            inputs.priors = {manifest.priors.data(), 0, 4, 1};
        } else if (engine->has_output("priors")) {
            const bool is_shared = engine->floats("priors").shape.size() == 2;
            inputs.priors = is_shared ? rows("priors", {num_anchors, 4}) : rows("priors", {1, num_anchors, 4});
        }
        const float canvas_hw[2] = {static_cast<float>(placed.height), static_cast<float>(placed.width)};
        inputs.image_size_hw = canvas_hw;
        if (engine->has_output("image_size_hw")) inputs.image_size_hw = rows("image_size_hw", {1, 2}).data;
        inputs.score_threshold = score_threshold;
        inputs.iou_threshold = iou_threshold;
        const size_t top = static_cast<size_t>(attributes.max_detections);
        num_detections.resize(1);
        boxes.resize(top * 4);
        scores.resize(top);
        class_ids.resize(top);
        decode_nms(attributes, inputs, {num_detections.data(), boxes.data(), scores.data(), class_ids.data()},
                   decode_workspace);
        return to_image(num_detections[0], boxes.data(), scores.data(), class_ids.data(), placed, image);
    }

    // From pixels of the network's input to those of the image, where the graph has not brought them back itself.
    std::vector<Detection> to_image(int32_t count, const float* from_boxes, const float* from_scores,
                                    const int32_t* from_classes, const LetterboxParameters& placed, const Image& image) {
        std::vector<float> on_image(from_boxes, from_boxes + static_cast<ptrdiff_t>(count) * 4);
        if (!(manifest.takes_pixels && manifest.gives_detections)) {
            boxes_to_image(from_boxes, count, placed, image.height, image.width, on_image.data());
        }
        std::vector<Detection> found;
        for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
            if (!(from_scores[i] > score_threshold)) continue;
            if (from_classes[i] < 0 || static_cast<size_t>(from_classes[i]) >= manifest.class_names.size()) {
                throw Error("model: expected class ids of the manifest, got " + std::to_string(from_classes[i]) +
                            "; export it again");
            }
            const float* box = &on_image[i * 4];
            found.push_back({{box[0], box[1], box[2], box[3]}, from_scores[i], from_classes[i]});
        }
        return found;
    }
};

// The line of an engine's message that says what is wrong: the operator's own, else the last; the others say where in
// the engine's sources.
static std::string reason(std::string text) {
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
    for (const char* start : {"DecodeNMS attribute ", "DecodeNMS input ", "DecodeNMS: "}) {
        const size_t found = text.find(start);
        if (found != std::string::npos) return text.substr(found, text.find('\n', found) - found);
    }
    const size_t start = text.rfind('\n');
    return start == std::string::npos ? text : text.substr(start + 1);
}

// What the engine and the kernels throw becomes an Error.
template <typename Action>
static auto as_errors(Action action) {
    try {
        return action();
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        throw Error(reason(error.what()));
    }
}

Detector::Detector(const std::string& path, const Options& options)
    : implementation_(as_errors([&] { return std::make_unique<Implementation>(path, options); })) {}
Detector::~Detector() = default;
Detector::Detector(Detector&&) noexcept = default;
Detector& Detector::operator=(Detector&&) noexcept = default;

std::vector<Detection> Detector::detect(const Image& image) {
    if (image.data == nullptr) throw Error("image: expected pixels, got none; pass them");
    return as_errors([&] { return implementation_->detect(image); });
}

const std::vector<std::string>& Detector::class_names() const { return implementation_->manifest.class_names; }

}  // namespace boxwright
