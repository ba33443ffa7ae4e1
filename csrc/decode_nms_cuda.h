// boxwright::DecodeNMS on an NVIDIA GPU: raw heads in, detections out. Knows no inference engine.
//
// The meaning is that of boxwright/core/decode.py, and the results are those of decode_nms.h to the bit. Nothing is
// allocated, and the host waits for nothing: the work is put on a stream, and may be captured into a CUDA graph.
#ifndef BOXWRIGHT_DECODE_NMS_CUDA_H
#define BOXWRIGHT_DECODE_NMS_CUDA_H

#include <cstddef>
#include <cstdint>
#include <string>

#include "decode_nms.h"

struct CUstream_st;  // cudaStream_t points to it

namespace boxwright {

enum class HeadType : int32_t { float32, float16 };

// A tensor of the network, its numbers side by side.
struct DeviceHead {
    const void* data = nullptr;
    HeadType type = HeadType::float32;
};

// All pointers are to device memory.
struct DecodeNmsCudaInputs {
    int64_t batch_size = 0;
    int64_t num_anchors = 0;
    int64_t num_classes = 0;            // background included
    DeviceHead box_regression;          // (B, N, 4) or, with class_specific_boxes, (B, N, C*4)
    DeviceHead class_logits;            // (B, N, C)
    DeviceHead objectness;              // (B, N), or null
    const float* priors = nullptr;      // (N, 4) or (B, N, 4), or null
    bool has_priors_for_each_item = false;
    const float* image_size_hw = nullptr;    // (B, 2), or null
    const float* score_threshold = nullptr;  // one number each; where it is outside [0, 1], all num_detections are -1
    const float* iou_threshold = nullptr;

    // What does not fit the attributes; empty where nothing is wrong. Validates the attributes too.
    std::string validate(const DecodeNmsAttributes& attributes) const;
};

// The most that one launch takes.
constexpr int64_t kMaxCudaLevels = 32;
constexpr int64_t kMaxCudaBatch = 65535;

// Bytes that `decode_nms_cuda_enqueue` needs for inputs of at most these sizes, aligned to 256.
size_t decode_nms_cuda_workspace_size(const DecodeNmsAttributes& attributes, int64_t batch_size, int64_t num_anchors,
                                      int64_t num_classes);

// Puts the work on the stream. Returns the cudaError_t of the launches, 0 for success.
// Throws std::invalid_argument with the text of DecodeNmsCudaInputs::validate.
int decode_nms_cuda_enqueue(const DecodeNmsAttributes& attributes, const DecodeNmsCudaInputs& inputs,
                            const DecodeNmsOutputs& outputs, void* workspace, CUstream_st* stream);

}  // namespace boxwright

#endif
