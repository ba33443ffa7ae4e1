// Signed integers before and behind a concatenation, which OpenVINO may round to whole numbers without a word; see
// src/boxwright/runtimes/openvino_integers.py.
#include <openvino/openvino.hpp>
#include <openvino/opsets/opset13.hpp>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "boxwright/detector.hpp"

namespace boxwright {

namespace {

namespace ops = ov::opset13;

constexpr float kStep = 0.05f;  // of the model that is tried

// What OpenVINO moves a quantization through, to the inputs and to the outputs; arithmetic only with constants.
const std::set<std::string> kArithmetic{"Add", "Multiply", "Subtract"};
const std::set<std::string> kUpwards{"Add", "Multiply", "Subtract", "Relu"};
const std::set<std::string> kDownwards{"Add",     "Multiply", "Subtract", "AvgPool", "Convert",      "Interpolate",
                                       "MaxPool", "Pad",      "Relu",     "Reshape", "Slice",        "Split",
                                       "Transpose", "StridedSlice", "VariadicSplit"};

using Node = const ov::Node*;

std::string type_of(Node node) { return node->get_type_info().name; }

std::vector<Node> users(Node node) {
    std::vector<Node> found;
    for (const auto& output : node->outputs()) {
        for (const auto& target : output.get_target_inputs()) found.push_back(target.get_node());
    }
    return found;
}

// Whether nothing but the first input is computed from the images.
bool is_unary(Node node) {
    if (kArithmetic.count(type_of(node)) == 0) return true;
    Node other = node->get_input_node_ptr(1);
    while (type_of(other) == "Convert" || type_of(other) == "Reshape") other = other->get_input_node_ptr(0);
    return type_of(other) == "Constant";
}

Node above(Node node) {
    while (kUpwards.count(type_of(node)) > 0 && is_unary(node)) node = node->get_input_node_ptr(0);
    return type_of(node) == "Concat" ? node : nullptr;
}

Node below(std::vector<Node> pending) {
    while (!pending.empty()) {
        const Node node = pending.back();
        pending.pop_back();
        if (type_of(node) == "Concat") return node;
        if (kDownwards.count(type_of(node)) > 0 && is_unary(node)) {
            for (const Node user : users(node)) pending.push_back(user);
        }
    }
    return nullptr;
}

// The first concatenation that a quantization to int8 would be moved through, if any.
Node concatenation_of_signed(const ov::Model& model) {
    for (const auto& node : model.get_ordered_ops()) {
        if (type_of(node.get()) != "FakeQuantize") continue;
        std::vector<Node> integers;
        for (const Node user : users(node.get())) {
            if (type_of(user) == "Convert" && user->get_output_element_type(0) == ov::element::i8) {
                integers.push_back(user);
            }
        }
        if (integers.empty()) continue;
        Node found = above(node->get_input_node_ptr(0));
        if (found == nullptr) found = below(integers);
        if (found != nullptr) return found;
    }
    return nullptr;
}

std::shared_ptr<ov::Node> constant(float value) {
    return ops::Constant::create(ov::element::f32, ov::Shape{}, {value});
}

// A convolution that changes nothing, behind a concatenation that is quantized to int8.
std::shared_ptr<ov::Model> smallest_model() {
    const ov::Shape half{1, 4, 4, 4};
    const auto first = std::make_shared<ops::Parameter>(ov::element::f32, half);
    const auto second = std::make_shared<ops::Parameter>(ov::element::f32, half);
    const auto both = std::make_shared<ops::Concat>(ov::OutputVector{first, second}, 1);
    const auto quantized = std::make_shared<ops::FakeQuantize>(
        both, constant(-128 * kStep), constant(127 * kStep), constant(-128), constant(127), 256);
    const auto integers = std::make_shared<ops::Convert>(quantized, ov::element::i8);
    const auto floats = std::make_shared<ops::Multiply>(std::make_shared<ops::Convert>(integers, ov::element::f32),
                                                        constant(kStep));
    std::vector<int8_t> identity(8 * 8, 0);
    for (size_t channel = 0; channel < 8; ++channel) identity[channel * 8 + channel] = 1;
    const auto weights = ops::Constant::create(ov::element::i8, ov::Shape{8, 8, 1, 1}, identity);
    const auto weight = std::make_shared<ops::Multiply>(std::make_shared<ops::Convert>(weights, ov::element::f32),
                                                        constant(1));
    const auto result = std::make_shared<ops::Convolution>(floats, weight, ov::Strides{1, 1}, ov::CoordinateDiff{0, 0},
                                                           ov::CoordinateDiff{0, 0}, ov::Strides{1, 1});
    return std::make_shared<ov::Model>(ov::OutputVector{result}, ov::ParameterVector{first, second});
}

// Whether this OpenVINO computes that rightly on this device; takes 30 ms.
bool is_right(ov::Core& core, const std::string& device) {
    std::vector<float> given(64);
    for (size_t i = 0; i < given.size(); ++i) given[i] = -1 + 2 * static_cast<float>(i) / 63;
    try {
        auto compiled = core.compile_model(smallest_model(), device, ov::hint::inference_precision(ov::element::f32));
        auto request = compiled.create_infer_request();
        for (size_t input = 0; input < 2; ++input) {
            request.set_input_tensor(input, ov::Tensor(ov::element::f32, ov::Shape{1, 4, 4, 4}, given.data()));
        }
        request.infer();
        const float* result = request.get_output_tensor().data<float>();
        float worst = 0;
        for (size_t i = 0; i < 128; ++i) worst = std::max(worst, std::abs(result[i] - given[i % 64]));
        return worst < kStep;
    } catch (const ov::Exception&) {
        return true;  // then the model itself will say why
    }
}

}  // namespace

// Throws Error where the model has what this OpenVINO computes wrongly on this device.
void check_signed_integers(const ov::Model& model, ov::Core& core, const std::string& device, const std::string& path) {
    const Node found = concatenation_of_signed(model);
    if (found == nullptr || is_right(core, device)) return;
    throw Error(path + ": expected activations in uint8 around concatenations, as OpenVINO needs them, got int8 around " +
                found->get_friendly_name() + ", which this OpenVINO computes wrongly without a word; calibrate with "
                "--engine openvino, or run this file on onnxruntime or tensorrt");
}

}  // namespace boxwright
