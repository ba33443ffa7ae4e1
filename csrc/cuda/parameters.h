// What the CUDA kernels of DecodeNMS are told, and how much memory and how many blocks they need.
#ifndef BOXWRIGHT_CUDA_PARAMETERS_H
#define BOXWRIGHT_CUDA_PARAMETERS_H

#include <cstddef>
#include <cstdint>

#include "../decode_nms_cuda.h"

namespace boxwright {
namespace cuda {

constexpr uint32_t kNoClass = 0xFFFFFFFFu;

// Of the kernels that look for candidates:
constexpr uint32_t kScanThreads = 256;
constexpr uint32_t kLogitsAPass = 2048;    // of which each may become a candidate, kept in shared memory
constexpr uint32_t kMaxRowsABlock = 512;
constexpr uint32_t kThreadsASoftmaxRow = 16;  // as many as decode_nms.h adds up side by side, for the same bits
constexpr uint32_t kSoftmaxRowsABlock = kScanThreads / kThreadsASoftmaxRow;

// Passed by value to the kernels.
struct Parameters {
    uint32_t num_anchors;
    uint32_t num_classes;
    uint32_t rows_a_block;  // anchors that a scanning block looks at

    DeviceHead box_regression;
    DeviceHead class_logits;
    DeviceHead objectness;
    const float* priors;
    size_t priors_batch_stride;
    const float* image_size_hw;
    const float* score_threshold;
    const float* iou_threshold;

    Activation score_activation;
    Activation objectness_activation;
    Combination score_combination;
    uint32_t background_class;  // kNoClass where there is none
    bool class_specific_boxes;
    bool multi_label;
    bool with_nms;
    bool class_agnostic;
    bool clip_to_image;
    bool has_scores_of_at_most_one;
    Overlap overlap;
    float min_size;
    uint32_t top_k;  // 0: none
    TopKScope top_k_scope;
    uint32_t num_scopes;
    uint32_t max_detections;

    CodingParameters coding;  // stride and scale of the first level
    uint32_t num_levels;
    uint32_t level_ends[kMaxCudaLevels];
    float level_strides[kMaxCudaLevels];
    float level_scale_xy[kMaxCudaLevels];

    // The workspace:
    uint32_t* num_candidates;  // (B)
    uint32_t* num_in_scope;    // (B, num_scopes)
    uint64_t* keys;            // (B, keys_an_item)
    size_t keys_an_item;

    DecodeNmsOutputs outputs;
};

// Where the parts of the workspace begin.
struct WorkspaceLayout {
    size_t keys_an_item;
    size_t num_in_scope_begin;
    size_t keys_begin;
    size_t size;
};

WorkspaceLayout workspace_layout(const DecodeNmsAttributes& attributes, int64_t batch_size, int64_t num_anchors,
                                 int64_t num_classes);

// Throws std::invalid_argument where inputs and attributes do not fit.
Parameters make_parameters(const DecodeNmsAttributes& attributes, const DecodeNmsCudaInputs& inputs,
                           const DecodeNmsOutputs& outputs, void* workspace);

uint32_t num_scan_blocks(const Parameters& parameters);

}  // namespace cuda
}  // namespace boxwright

#endif
