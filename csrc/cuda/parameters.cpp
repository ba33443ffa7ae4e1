#include "parameters.h"

#include <algorithm>
#include <stdexcept>

namespace boxwright {

namespace {

size_t rounded_up(size_t size) { return (size + 255) / 256 * 256; }

size_t num_scopes_of(const DecodeNmsAttributes& attributes, int64_t num_classes) {
    if (attributes.pre_nms_top_k == 0 || attributes.top_k_scope == TopKScope::image) return 1;
    if (attributes.top_k_scope == TopKScope::class_) return static_cast<size_t>(num_classes);
    return attributes.level_sizes.size();
}

std::string limit_error(const char* what, int64_t limit, int64_t got, const char* fix) {
    return std::string("DecodeNMS ") + what + ": expected at most " + std::to_string(limit) + " on a GPU, got " +
           std::to_string(got) + "; " + fix;
}

}  // namespace

std::string DecodeNmsCudaInputs::validate(const DecodeNmsAttributes& attributes) const {
    // The checks of the sizes, and of which inputs there are, see the pointers but not what they point to.
    DecodeNmsInputs seen;
    seen.batch_size = batch_size;
    seen.num_anchors = num_anchors;
    seen.num_classes = num_classes;
    seen.box_regression.data = static_cast<const float*>(box_regression.data);
    seen.class_logits.data = static_cast<const float*>(class_logits.data);
    seen.objectness.data = static_cast<const float*>(objectness.data);
    seen.priors.data = priors;
    seen.image_size_hw = image_size_hw;
    const std::string found = seen.validate(attributes);
    if (!found.empty()) return found;
    const int64_t num_levels = static_cast<int64_t>(attributes.level_sizes.size());
    if (num_levels > kMaxCudaLevels) {
        return limit_error("attribute level_sizes", kMaxCudaLevels, num_levels, "export with --nms graph");
    }
    if (batch_size > kMaxCudaBatch) {
        return limit_error("input class_logits, batch size", kMaxCudaBatch, batch_size, "split the batch");
    }
    return "";
}

size_t decode_nms_cuda_workspace_size(const DecodeNmsAttributes& attributes, int64_t batch_size, int64_t num_anchors,
                                      int64_t num_classes) {
    return cuda::workspace_layout(attributes, batch_size, num_anchors, num_classes).size;
}

namespace cuda {

WorkspaceLayout workspace_layout(const DecodeNmsAttributes& attributes, int64_t batch_size, int64_t num_anchors,
                                 int64_t num_classes) {
    const size_t batch = static_cast<size_t>(batch_size), anchors = static_cast<size_t>(num_anchors);
    const size_t classes = static_cast<size_t>(num_classes);
    WorkspaceLayout layout;
    layout.keys_an_item = attributes.multi_label ? anchors * classes : anchors;
    layout.num_in_scope_begin = rounded_up(batch * sizeof(uint32_t));
    layout.keys_begin =
        layout.num_in_scope_begin + rounded_up(batch * num_scopes_of(attributes, num_classes) * sizeof(uint32_t));
    layout.size = layout.keys_begin + rounded_up(batch * layout.keys_an_item * sizeof(uint64_t));
    return layout;
}

namespace {

void take_attributes(const DecodeNmsAttributes& attributes, Parameters& parameters) {
    parameters.score_activation = attributes.score_activation;
    parameters.objectness_activation = attributes.objectness_activation;
    parameters.score_combination = attributes.score_combination;
    parameters.background_class =
        attributes.background_class < 0 ? kNoClass : static_cast<uint32_t>(attributes.background_class);
    parameters.class_specific_boxes = attributes.class_specific_boxes;
    parameters.multi_label = attributes.multi_label;
    parameters.with_nms = attributes.with_nms;
    parameters.class_agnostic = attributes.class_agnostic;
    parameters.clip_to_image = attributes.clip_to_image;
    parameters.has_scores_of_at_most_one =
        attributes.score_activation != Activation::none &&
        (attributes.score_combination == Combination::none || attributes.objectness_activation == Activation::sigmoid);
    parameters.overlap = attributes.overlap;
    parameters.min_size = attributes.min_size;
    // No image has more candidates than that.
    parameters.top_k = static_cast<uint32_t>(std::min<int64_t>(attributes.pre_nms_top_k, 0xFFFFFFFF));
    parameters.top_k_scope = attributes.top_k_scope;
    parameters.max_detections = static_cast<uint32_t>(attributes.max_detections);
    parameters.coding.coding = attributes.box_coding;
    std::copy(std::begin(attributes.box_weights), std::end(attributes.box_weights), parameters.coding.weights);
    parameters.coding.delta_clip = attributes.delta_clip;
    parameters.coding.stride = 1.0f;
    parameters.coding.scale_xy = 1.0f;
}

void take_levels(const DecodeNmsAttributes& attributes, Parameters& parameters) {
    parameters.num_levels = static_cast<uint32_t>(attributes.level_sizes.size());
    int64_t end = 0;
    for (size_t level = 0; level < attributes.level_sizes.size(); ++level) {
        end += attributes.level_sizes[level];
        // Where levels do not matter they need not sum to the number of anchors.
        parameters.level_ends[level] = static_cast<uint32_t>(std::min<int64_t>(end, 0xFFFFFFFF));
        parameters.level_strides[level] =
            level < attributes.level_strides.size() ? attributes.level_strides[level] : 1.0f;
        parameters.level_scale_xy[level] =
            attributes.level_scale_xy.empty() ? 1.0f : attributes.level_scale_xy[level];
    }
}

void take_inputs(const DecodeNmsCudaInputs& inputs, Parameters& parameters) {
    parameters.num_anchors = static_cast<uint32_t>(inputs.num_anchors);
    parameters.num_classes = static_cast<uint32_t>(inputs.num_classes);
    parameters.rows_a_block =
        std::clamp<uint32_t>(kLogitsAPass / parameters.num_classes, 1, kMaxRowsABlock);
    parameters.box_regression = inputs.box_regression;
    parameters.class_logits = inputs.class_logits;
    parameters.objectness = inputs.objectness;
    parameters.priors = inputs.priors;
    parameters.priors_batch_stride = inputs.has_priors_for_each_item ? 4 * static_cast<size_t>(inputs.num_anchors) : 0;
    parameters.image_size_hw = inputs.image_size_hw;
    parameters.score_threshold = inputs.score_threshold;
    parameters.iou_threshold = inputs.iou_threshold;
}

}  // namespace

Parameters make_parameters(const DecodeNmsAttributes& attributes, const DecodeNmsCudaInputs& inputs,
                           const DecodeNmsOutputs& outputs, void* workspace) {
    const std::string error = inputs.validate(attributes);
    if (!error.empty()) throw std::invalid_argument(error);
    Parameters parameters = {};
    take_attributes(attributes, parameters);
    take_levels(attributes, parameters);
    take_inputs(inputs, parameters);
    if (parameters.score_activation == Activation::softmax) parameters.rows_a_block = kSoftmaxRowsABlock;
    parameters.num_scopes = static_cast<uint32_t>(num_scopes_of(attributes, inputs.num_classes));
    const WorkspaceLayout layout =
        workspace_layout(attributes, inputs.batch_size, inputs.num_anchors, inputs.num_classes);
    char* begin = static_cast<char*>(workspace);
    parameters.num_candidates = reinterpret_cast<uint32_t*>(begin);
    parameters.num_in_scope = reinterpret_cast<uint32_t*>(begin + layout.num_in_scope_begin);
    parameters.keys = reinterpret_cast<uint64_t*>(begin + layout.keys_begin);
    parameters.keys_an_item = layout.keys_an_item;
    parameters.outputs = outputs;
    return parameters;
}

uint32_t num_scan_blocks(const Parameters& parameters) {
    return (parameters.num_anchors + parameters.rows_a_block - 1) / parameters.rows_a_block;
}

}  // namespace cuda
}  // namespace boxwright
