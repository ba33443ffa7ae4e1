// DecodeNMS for ctypes: plain C, attributes by name as files carry them. The same for the CUDA kernels and their
// emulation, whose libraries differ in where the pointers point to.
#ifndef BOXWRIGHT_TESTS_DECODE_NMS_CUDA_ENTRY_H
#define BOXWRIGHT_TESTS_DECODE_NMS_CUDA_ENTRY_H

#include <cstdint>
#include <cstdio>
#include <string>

#include "decode_nms_cuda.h"

// tests/decode_nms_cuda_library.py has the same.
struct EntryAttributes {
    const char* box_coding;
    const char* score_activation;
    const char* objectness_activation;
    const char* score_combination;
    const char* overlap;
    const char* top_k_scope;
    const int64_t* level_sizes;
    const float* level_strides;
    const float* level_scale_xy;
    int64_t num_level_sizes, num_level_strides, num_level_scale_xy;
    int64_t background_class, pre_nms_top_k, max_detections;
    float box_weights[4];
    float delta_clip, min_size;
    int32_t class_specific_boxes, multi_label, with_nms, class_agnostic, clip_to_image;
};

struct EntryInputs {
    int64_t batch_size, num_anchors, num_classes;
    const void* box_regression;
    const void* class_logits;
    const void* objectness;
    const float* priors;
    const float* image_size_hw;
    const float* score_threshold;
    const float* iou_threshold;
    int32_t is_float16, has_priors_for_each_item;
};

struct EntryOutputs {
    int32_t* num_detections;
    float* boxes;
    float* scores;
    int32_t* class_ids;
};

namespace boxwright {

// False where a name is unknown.
inline bool take(const EntryAttributes& from, DecodeNmsAttributes& to) {
    to.level_sizes.assign(from.level_sizes, from.level_sizes + from.num_level_sizes);
    to.level_strides.assign(from.level_strides, from.level_strides + from.num_level_strides);
    to.level_scale_xy.assign(from.level_scale_xy, from.level_scale_xy + from.num_level_scale_xy);
    to.background_class = from.background_class;
    to.pre_nms_top_k = from.pre_nms_top_k;
    to.max_detections = from.max_detections;
    for (int i = 0; i < 4; ++i) to.box_weights[i] = from.box_weights[i];
    to.delta_clip = from.delta_clip;
    to.min_size = from.min_size;
    to.class_specific_boxes = from.class_specific_boxes != 0;
    to.multi_label = from.multi_label != 0;
    to.with_nms = from.with_nms != 0;
    to.class_agnostic = from.class_agnostic != 0;
    to.clip_to_image = from.clip_to_image != 0;
    return parse(from.box_coding, to.box_coding) && parse(from.score_activation, to.score_activation) &&
           parse(from.objectness_activation, to.objectness_activation) &&
           parse(from.score_combination, to.score_combination) && parse(from.overlap, to.overlap) &&
           parse(from.top_k_scope, to.top_k_scope);
}

inline DecodeNmsCudaInputs taken(const EntryInputs& from) {
    const HeadType type = from.is_float16 != 0 ? HeadType::float16 : HeadType::float32;
    DecodeNmsCudaInputs to;
    to.batch_size = from.batch_size;
    to.num_anchors = from.num_anchors;
    to.num_classes = from.num_classes;
    to.box_regression = {from.box_regression, type};
    to.class_logits = {from.class_logits, type};
    to.objectness = {from.objectness, type};
    to.priors = from.priors;
    to.has_priors_for_each_item = from.has_priors_for_each_item != 0;
    to.image_size_hw = from.image_size_hw;
    to.score_threshold = from.score_threshold;
    to.iou_threshold = from.iou_threshold;
    return to;
}

// Calls `work(attributes, inputs, outputs)`; 0 for success, -1 with the text of an error in `message`.
template <typename Work>
int run_entry(const EntryAttributes& attributes, const EntryInputs& inputs, const EntryOutputs& outputs, char* message,
              size_t message_size, Work work) {
    DecodeNmsAttributes taken_attributes;
    if (!take(attributes, taken_attributes)) {
        std::snprintf(message, message_size, "an unknown name");
        return -1;
    }
    try {
        return work(taken_attributes, taken(inputs),
                    DecodeNmsOutputs{outputs.num_detections, outputs.boxes, outputs.scores, outputs.class_ids});
    } catch (const std::exception& error) {
        std::snprintf(message, message_size, "%s", error.what());
        return -1;
    }
}

inline size_t entry_workspace_size(const EntryAttributes& attributes, const EntryInputs& inputs) {
    DecodeNmsAttributes taken_attributes;
    return take(attributes, taken_attributes)
               ? decode_nms_cuda_workspace_size(taken_attributes, inputs.batch_size, inputs.num_anchors,
                                                inputs.num_classes)
               : 0;
}

}  // namespace boxwright

#endif
