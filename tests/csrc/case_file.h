// Calls of DecodeNMS with their results, as tests/decode_nms_case_file.py writes them, replayed on every instruction set.
#ifndef BOXWRIGHT_TESTS_CASE_FILE_H
#define BOXWRIGHT_TESTS_CASE_FILE_H

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "decode_nms.h"

namespace boxwright {

// Numbers, texts and arrays one after another, the lowest byte of each number first.
class CaseFile {
   public:
    explicit CaseFile(const char* path) : stream_(path, std::ios::binary) {
        if (!stream_) throw std::runtime_error(std::string("cannot open ") + path);
    }

    bool is_at_end() { return stream_.peek() == std::ifstream::traits_type::eof(); }

    double number() { return value<double>(); }
    int64_t integer() { return static_cast<int64_t>(number()); }
    float real() { return static_cast<float>(number()); }
    bool flag() { return number() != 0.0; }

    template <typename Value>
    std::vector<Value> array() {
        std::vector<Value> values(static_cast<size_t>(integer()));
        read(values.data(), values.size() * sizeof(Value));
        return values;
    }

    template <typename Enum>
    Enum named() {
        const std::vector<char> letters = array<char>();
        const std::string name(letters.begin(), letters.end());
        Enum parsed;
        if (!parse(name, parsed)) throw std::runtime_error("unknown name " + name);
        return parsed;
    }

   private:
    template <typename Value>
    Value value() {
        Value result;
        read(&result, sizeof result);
        return result;
    }

    void read(void* bytes, size_t count) {
        stream_.read(static_cast<char*>(bytes), static_cast<std::streamsize>(count));
        if (!stream_) throw std::runtime_error("the file of cases ends within a case");
    }

    std::ifstream stream_;
};

// Arrays have exactly the size that the kernel may touch, so that AddressSanitizer sees a step beyond it.
struct RecordedResult {
    std::vector<int32_t> num_detections;
    std::vector<float> boxes;
    std::vector<float> scores;
    std::vector<int32_t> class_ids;

    DecodeNmsOutputs pointers() { return {num_detections.data(), boxes.data(), scores.data(), class_ids.data()}; }
    bool operator==(const RecordedResult& other) const {
        return num_detections == other.num_detections && boxes == other.boxes && scores == other.scores &&
               class_ids == other.class_ids;
    }
};

struct RecordedCall {
    DecodeNmsAttributes attributes;
    DecodeNmsInputs inputs;
    std::vector<float> box_regression, class_logits, objectness, priors, image_size_hw;
    RecordedResult result;
};

inline DecodeNmsAttributes read_attributes(CaseFile& file) {
    DecodeNmsAttributes attributes;
    attributes.box_coding = file.named<BoxCoding>();
    attributes.score_activation = file.named<Activation>();
    attributes.objectness_activation = file.named<Activation>();
    attributes.score_combination = file.named<Combination>();
    attributes.overlap = file.named<Overlap>();
    attributes.top_k_scope = file.named<TopKScope>();
    for (float& weight : attributes.box_weights) weight = file.real();
    attributes.delta_clip = file.real();
    attributes.min_size = file.real();
    attributes.background_class = file.integer();
    attributes.pre_nms_top_k = file.integer();
    attributes.max_detections = file.integer();
    attributes.class_specific_boxes = file.flag();
    attributes.multi_label = file.flag();
    attributes.with_nms = file.flag();
    attributes.class_agnostic = file.flag();
    attributes.clip_to_image = file.flag();
    attributes.level_sizes = file.array<int64_t>();
    attributes.level_strides = file.array<float>();
    attributes.level_scale_xy = file.array<float>();
    return attributes;
}

// The rows of an array that holds `width` numbers for each anchor.
inline AnchorRows rows_of(const std::vector<float>& values, int64_t num_anchors, int64_t width, bool is_shared) {
    return {values.data(), is_shared ? 0 : num_anchors * width, width, 1};
}

inline void read_call(CaseFile& file, RecordedCall& call) {
    call.attributes = read_attributes(file);
    DecodeNmsInputs& inputs = call.inputs;
    inputs.score_threshold = file.real();
    inputs.iou_threshold = file.real();
    inputs.batch_size = file.integer();
    inputs.num_anchors = file.integer();
    inputs.num_classes = file.integer();
    const bool has_objectness = file.flag(), has_priors = file.flag(), has_shared_priors = file.flag();
    for (auto* values :
         {&call.box_regression, &call.class_logits, &call.objectness, &call.priors, &call.image_size_hw}) {
        *values = file.array<float>();
    }
    const int64_t box_width = call.attributes.class_specific_boxes ? 4 * inputs.num_classes : 4;
    inputs.box_regression = rows_of(call.box_regression, inputs.num_anchors, box_width, false);
    inputs.class_logits = rows_of(call.class_logits, inputs.num_anchors, inputs.num_classes, false);
    if (has_objectness) inputs.objectness = rows_of(call.objectness, inputs.num_anchors, 1, false);
    if (has_priors) inputs.priors = rows_of(call.priors, inputs.num_anchors, 4, has_shared_priors);
    if (call.attributes.clip_to_image) inputs.image_size_hw = call.image_size_hw.data();
    call.result.num_detections = file.array<int32_t>();
    call.result.boxes = file.array<float>();
    call.result.scores = file.array<float>();
    call.result.class_ids = file.array<int32_t>();
}

// Prints what differs; returns the exit status.
inline int replay_cases(const char* path) {
    CaseFile file(path);
    DecodeNmsWorkspace workspace;
    int num_cases = 0, num_different = 0;
    for (; !file.is_at_end(); ++num_cases) {
        RecordedCall call;
        read_call(file, call);
        for (const InstructionSet set : available_instruction_sets()) {
            RecordedResult result = call.result;
            result.scores.assign(result.scores.size(), -7.0f);  // so that what is left unwritten shows
            result.boxes.assign(result.boxes.size(), -7.0f);
            decode_nms(call.attributes, call.inputs, result.pointers(), workspace, 1, set);
            if (result == call.result) continue;
            std::printf("case %d differs on %s\n", num_cases, name_of(set));
            ++num_different;
        }
    }
    std::printf("replayed %d cases, %d differ\n", num_cases, num_different);
    return num_different == 0 && num_cases > 0 ? 0 : 1;
}

}  // namespace boxwright

#endif
