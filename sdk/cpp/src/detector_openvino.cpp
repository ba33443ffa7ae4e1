// boxwright::Detector over OpenVINO.
#include <fstream>
#include <iterator>
#include <openvino/openvino.hpp>

#include "boxwright/detector.hpp"
#include "decode_nms.h"
#include "letterbox.h"
#include "manifest.h"
#include "onnx_file.h"

namespace boxwright {

std::vector<ov::Extension::Ptr> openvino_extensions();  // plugin_openvino.cpp

namespace {

constexpr const char* kManifestKey = "boxwright.manifest";
const std::vector<std::string> kThresholds = {"score_threshold", "iou_threshold"};

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (content.empty()) throw Error(path + ": expected a model file, got none or an empty one; check the path");
    return content;
}

bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

float threshold(const char* name, const std::optional<float>& given, float of_manifest) {
    const float value = given.value_or(of_manifest);
    if (!(value >= 0.0f && value <= 1.0f)) {
        throw Error(std::string(name) + ": expected a number in [0, 1], got " + std::to_string(value) + "; correct it");
    }
    return value;
}

bool has_port(const std::vector<ov::Output<const ov::Node>>& ports, const std::string& name) {
    for (const auto& port : ports) {
        if (port.get_names().count(name) > 0) return true;
    }
    return false;
}

}  // namespace

struct Detector::Implementation {
    Manifest manifest;
    ov::Core core;
    ov::CompiledModel compiled;
    ov::InferRequest request;
    float score_threshold = 0.0f;
    float iou_threshold = 0.0f;
    LetterboxWorkspace letterbox_workspace;
    DecodeNmsWorkspace decode_workspace;
    std::vector<int32_t> num_detections, class_ids;
    std::vector<float> boxes, scores;

    Implementation(const std::string& path, const Options& options) {
        core.add_extension(openvino_extensions());
        const std::shared_ptr<ov::Model> model = read(path);
        score_threshold = threshold("score_threshold", options.score_threshold, manifest.score_threshold);
        iou_threshold = threshold("iou_threshold", options.iou_threshold, manifest.iou_threshold);
        ov::AnyMap settings{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                            ov::hint::inference_precision(ov::element::f32)};
        if (options.num_threads > 0) settings.insert(ov::inference_num_threads(options.num_threads));
        compiled = core.compile_model(model, options.device, settings);
        check_ports(path);
        request = compiled.create_infer_request();
    }

    std::shared_ptr<ov::Model> read(const std::string& path) {
        if (!ends_with(path, ".onnx")) {
            std::shared_ptr<ov::Model> model = core.read_model(path);
            if (!model->has_rt_info(kManifestKey)) throw without_manifest(path);
            manifest = read_manifest(model->get_rt_info<std::string>(kManifestKey));
            return model;
        }
        const std::string content = read_file(path);
        const std::string text = onnx_metadata(content, kManifestKey);
        if (text.empty()) throw without_manifest(path);
        manifest = read_manifest(text);
        return core.read_model(onnx_without_initializers(content, kThresholds), ov::Tensor());
    }

    static Error without_manifest(const std::string& path) {
        return Error(path + ": expected a model with Boxwright's manifest inside, got none; write it with boxwright export");
    }

    void check_ports(const std::string& path) const {
        std::vector<std::string> outputs = {"num_detections", "boxes", "scores", "class_ids"};
        if (!manifest.gives_detections) outputs = {"box_regression", "class_logits"};
        if (!manifest.gives_detections && manifest.attributes.score_combination != Combination::none) {
            outputs.push_back("objectness");
        }
        for (const std::string& name : outputs) {
            if (!has_port(compiled.outputs(), name)) {
                throw Error(path + ": expected the output " + name + ", got a model without it; export it again");
            }
        }
        const ov::PartialShape expected{-1, 3, manifest.preprocess.height, manifest.preprocess.width};
        if (!has_port(compiled.inputs(), "images") ||
            !compiled.input("images").get_partial_shape().compatible(expected) ||
            !compiled.input("images").get_partial_shape()[0].compatible(1)) {
            throw Error(path + ": expected an input images (1, 3, height, width) of the manifest's size, got another; "
                               "export it again with --batch 1");
        }
    }

    std::vector<Detection> detect(const Image& image) {
        const LetterboxParameters placed = manifest.preprocess.plan(image.height, image.width);
        ov::Tensor input(ov::element::f32, {1, 3, static_cast<size_t>(placed.height), static_cast<size_t>(placed.width)});
        const ImageView view{image.data, image.height, image.width,
                             image.row_stride != 0 ? image.row_stride : static_cast<ptrdiff_t>(image.width * 3)};
        letterbox(view, placed, input.data<float>(), letterbox_workspace);
        request.set_tensor("images", input);
        for (const std::string& name : kThresholds) set_threshold(name);
        request.infer();
        return manifest.gives_detections ? read_detections(placed, image) : decode(placed, image);
    }

    void set_threshold(const std::string& name) {
        if (!has_port(compiled.inputs(), name)) return;
        const ov::PartialShape shape = compiled.input(name).get_partial_shape();
        ov::Tensor tensor(ov::element::f32, ov::Shape(shape.rank().is_static() ? shape.size() : 0, 1));
        *tensor.data<float>() = name == "score_threshold" ? score_threshold : iou_threshold;
        request.set_tensor(name, tensor);
    }

    std::vector<Detection> read_detections(const LetterboxParameters& placed, const Image& image) {
        const int32_t count = *request.get_tensor("num_detections").data<const int32_t>();
        return to_image(count, request.get_tensor("boxes").data<const float>(),
                        request.get_tensor("scores").data<const float>(),
                        request.get_tensor("class_ids").data<const int32_t>(), placed, image);
    }

    AnchorRows rows(const char* name, int64_t row_length) {
        const ov::Tensor tensor = request.get_tensor(name);
        return {tensor.data<const float>(), static_cast<int64_t>(tensor.get_size()), row_length, 1};
    }

    std::vector<Detection> decode(const LetterboxParameters& placed, const Image& image) {
        const DecodeNmsAttributes& attributes = manifest.attributes;
        const ov::Shape shape = request.get_tensor("class_logits").get_shape();
        DecodeNmsInputs inputs;
        inputs.batch_size = 1;
        inputs.num_anchors = static_cast<int64_t>(shape[1]);
        inputs.num_classes = static_cast<int64_t>(shape[2]);
        const int64_t width = attributes.class_specific_boxes ? 4 * inputs.num_classes : 4;
        if (static_cast<int64_t>(request.get_tensor("box_regression").get_size()) != inputs.num_anchors * width ||
            (!manifest.priors.empty() && static_cast<int64_t>(manifest.priors.size()) != inputs.num_anchors * 4)) {
            throw Error("model: expected heads that fit the manifest, got others; export it again");
        }
        inputs.box_regression = rows("box_regression", width);
        inputs.class_logits = rows("class_logits", inputs.num_classes);
        if (attributes.score_combination != Combination::none) inputs.objectness = rows("objectness", 1);
        if (!manifest.priors.empty()) inputs.priors = {manifest.priors.data(), 0, 4, 1};
        if (manifest.priors.empty() && has_port(compiled.outputs(), "priors")) inputs.priors = rows("priors", 4);
        const float canvas[2] = {static_cast<float>(placed.height), static_cast<float>(placed.width)};
        inputs.image_size_hw = canvas;
        if (has_port(compiled.outputs(), "image_size_hw")) {
            inputs.image_size_hw = request.get_tensor("image_size_hw").data<const float>();
        }
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

    // From pixels of the network's input to those of the image.
    std::vector<Detection> to_image(int32_t count, const float* from_boxes, const float* from_scores,
                                    const int32_t* from_classes, const LetterboxParameters& placed, const Image& image) {
        std::vector<float> on_image(static_cast<size_t>(count) * 4);
        boxes_to_image(from_boxes, count, placed, image.height, image.width, on_image.data());
        std::vector<Detection> found;
        for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
            if (!(from_scores[i] > score_threshold)) continue;
            const float* box = &on_image[i * 4];
            found.push_back({{box[0], box[1], box[2], box[3]}, from_scores[i], from_classes[i]});
        }
        return found;
    }
};

// What the engine and the kernels throw becomes an Error.
template <typename Action>
static auto as_errors(Action action) {
    try {
        return action();
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        throw Error(error.what());
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
