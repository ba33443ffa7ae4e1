// A DecodeNMS node as TensorRT describes it: fields for attributes, tensor descriptions for inputs and outputs. The same
// for all versions of TensorRT; plugin_tensorrt.cpp has the interfaces in which they differ.
//
// Inputs come in the order of boxwright/export/decode_nms/function.py: box_regression, class_logits, score_threshold,
// iou_threshold, then objectness, image_size_hw and priors where the attributes call for them; what a node does not have
// is left out, so no input is ever absent in between.
#ifndef BOXWRIGHT_PLUGIN_TENSORRT_NODE_H
#define BOXWRIGHT_PLUGIN_TENSORRT_NODE_H

#include <NvInfer.h>

#include <cstdint>
#include <string>
#include <vector>

#include "decode_nms_cuda.h"

namespace boxwright {
namespace tensorrt {

constexpr char kName[] = "DecodeNMS";
constexpr char kVersion[] = "1";
constexpr int32_t kNumOutputs = 4;

// A field that owns its numbers or letters.
struct Field {
    std::string name;
    nvinfer1::PluginFieldType type;
    int32_t length;
    std::vector<char> data;

    nvinfer1::PluginField view() const { return {name.c_str(), data.data(), type, length}; }
};

// The fields that a creator takes, without values.
const nvinfer1::PluginFieldCollection* known_fields();

// Sizes of a tensor, -1 for those that are not known yet.
using Sizes = std::vector<int64_t>;

// All functions throw std::invalid_argument where something does not fit.
class Node {
   public:
    // Of the fields that a network has; those that it leaves out have their defaults.
    static Node from_fields(const nvinfer1::PluginField* fields, int32_t count);

    // Everything that must live on in an engine, as fields and as bytes.
    std::vector<Field> to_fields() const;
    std::string to_bytes() const;
    static Node from_bytes(const void* data, size_t size);

    const DecodeNmsAttributes& attributes() const { return attributes_; }

    void require_shapes(const std::vector<Sizes>& shapes) const;

    // Engines may run a node without saying how many inputs it has.
    void set_num_inputs(int32_t num_inputs);

    bool supports(int32_t place, const nvinfer1::PluginTensorDesc* tensors, int32_t num_inputs) const;

    size_t workspace_size(const nvinfer1::Dims& class_logits) const;

    // Returns a cudaError_t.
    int enqueue(const nvinfer1::PluginTensorDesc* descriptions, const void* const* inputs, void* const* outputs,
                void* workspace, CUstream_st* stream) const;

   private:
    // Where each input stands; -1 where the attributes leave it out.
    struct Places {
        int32_t objectness = -1;
        int32_t image_size_hw = -1;
        int32_t priors = -1;
    };
    Places places(int32_t num_inputs) const;

    void take(const nvinfer1::PluginField& field);

    std::vector<Field> fields_;
    DecodeNmsAttributes attributes_;
    int32_t num_inputs_ = 0;  // 0: not known yet
};

template <typename Dimensions>
Sizes sizes_of(const Dimensions& dimensions) {
    return Sizes(dimensions.d, dimensions.d + dimensions.nbDims);
}

}  // namespace tensorrt
}  // namespace boxwright

#endif
