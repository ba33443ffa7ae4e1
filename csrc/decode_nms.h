// boxwright::DecodeNMS on the CPU: raw heads in, detections out. Knows no inference engine.
//
// The meaning is that of boxwright/core/decode.py, step by step; results may differ only where a score, an overlap or
// the top-k cut lies within 1e-6 of a tie or a threshold.
#ifndef BOXWRIGHT_DECODE_NMS_H
#define BOXWRIGHT_DECODE_NMS_H

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "decode_math.h"
#include "instruction_set.h"

namespace boxwright {

// The attributes of the operator; boxwright/core/decode_nms_attributes.py explains each.
struct DecodeNmsAttributes {
    BoxCoding box_coding = BoxCoding::xyxy;
    float box_weights[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    float delta_clip = 0.0f;
    std::vector<int64_t> level_sizes;
    std::vector<float> level_strides;
    std::vector<float> level_scale_xy;
    Activation score_activation = Activation::sigmoid;
    Activation objectness_activation = Activation::sigmoid;
    Combination score_combination = Combination::none;
    int64_t background_class = -1;
    bool class_specific_boxes = false;
    bool multi_label = false;
    bool with_nms = true;
    bool class_agnostic = false;
    Overlap overlap = Overlap::iou;
    int64_t pre_nms_top_k = 0;
    TopKScope top_k_scope = TopKScope::image;
    bool clip_to_image = false;
    float min_size = 0.0f;
    int64_t max_detections = 300;

    // What is wrong, in the words "what: expected ..., got ...; what to do"; empty where nothing is.
    std::string validate() const;
};

// The enumerators by the names that files use, e.g. "anchor_delta"; false where the name is unknown.
bool parse(const std::string& name, BoxCoding& coding);
bool parse(const std::string& name, Activation& activation);
bool parse(const std::string& name, Combination& combination);
bool parse(const std::string& name, TopKScope& scope);
bool parse(const std::string& name, Overlap& overlap);

// A row of numbers for each anchor of each item of the batch. Strides count floats and may be anything, so that heads
// are read where they lie: a slice of a wider head, or one that has a row for each class.
struct AnchorRows {
    const float* data = nullptr;
    int64_t batch_stride = 0;  // 0 where all items of the batch share the rows
    int64_t anchor_stride = 0;
    int64_t number_stride = 1;
};

struct DecodeNmsInputs {
    int64_t batch_size = 0;
    int64_t num_anchors = 0;
    int64_t num_classes = 0;              // background included
    AnchorRows box_regression;            // (B, N, 4) or, with class_specific_boxes, (B, N, C*4)
    AnchorRows class_logits;              // (B, N, C)
    AnchorRows objectness;                // (B, N), or null
    AnchorRows priors;                    // (N, 4) or (B, N, 4), or null
    const float* image_size_hw = nullptr;  // (B, 2), or null
    float score_threshold = 0.0f;
    float iou_threshold = 0.0f;

    // What does not fit the attributes, or is out of range; empty where nothing is. Validates the attributes too.
    std::string validate(const DecodeNmsAttributes& attributes) const;
};

// Room for the results, K = max_detections, rows of a batch item side by side.
struct DecodeNmsOutputs {
    int32_t* num_detections = nullptr;  // (B, 1)
    float* boxes = nullptr;             // (B, K, 4) xyxy
    float* scores = nullptr;            // (B, K)
    int32_t* class_ids = nullptr;       // (B, K)
};

// Memory that is kept between calls, so that calls with inputs no larger than before allocate nothing. One workspace
// serves one call at a time.
class DecodeNmsWorkspace {
   public:
    DecodeNmsWorkspace();
    ~DecodeNmsWorkspace();
    DecodeNmsWorkspace(DecodeNmsWorkspace&&) noexcept;
    DecodeNmsWorkspace& operator=(DecodeNmsWorkspace&&) noexcept;

    struct Implementation;
    Implementation& implementation() { return *implementation_; }

   private:
    std::unique_ptr<Implementation> implementation_;
};

// Fills the outputs. `num_threads` > 1 decodes that many items of the batch at the same time.
// Throws std::invalid_argument with the text of DecodeNmsInputs::validate.
void decode_nms(const DecodeNmsAttributes& attributes, const DecodeNmsInputs& inputs, const DecodeNmsOutputs& outputs,
                DecodeNmsWorkspace& workspace, int num_threads = 1,
                InstructionSet instruction_set = best_instruction_set());

}  // namespace boxwright

#endif
