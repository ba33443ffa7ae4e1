#include "random_case.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "decode_nms.h"
#include "letterbox.h"

namespace boxwright {
namespace fuzz {

namespace {

void require(bool holds, const char* rule) {
    if (holds) return;
    std::fprintf(stderr, "broken rule: %s\n", rule);
    std::abort();
}

// FNV-1a over the bits of the values.
template <typename Value>
uint64_t digest_of(const std::vector<Value>& values, uint64_t digest = 14695981039346656037u) {
    for (const Value value : values) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        for (int i = 0; i < 4; ++i, bits >>= 8) digest = (digest ^ (bits & 0xFF)) * 1099511628211u;
    }
    return digest;
}

constexpr float kOdd[] = {0.0f,   -0.0f, 1.0f,  -1.0f,   1e-45f,  1e30f,
                          -1e30f, 3e38f, -3e38f, 88.72f, -103.9f, 0.5f};

}  // namespace

float Bytes::number() {
    const uint8_t kind = byte();
    if (kind < 200) return static_cast<float>(static_cast<int>(kind) - 100) * 0.125f;
    if (kind < 212) return kOdd[kind - 200];
    if (kind < 240) return static_cast<float>(static_cast<int>(byte()) - 128) * 3.0f;
    uint32_t bits = 0;
    for (int i = 0; i < 4; ++i) bits = bits << 8 | byte();
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

namespace {

// A head of the given extent in one of the layouts that heads come in.
class Head {
   public:
    Head(Bytes& bytes, int64_t batch_size, int64_t num_anchors, int64_t width) {
        const int layout = static_cast<int>(bytes.below(4));
        const int64_t gap = layout == 2 ? 1 + bytes.below(3) : 0;
        rows_.number_stride = layout == 1 ? num_anchors : 1;
        rows_.anchor_stride = layout == 1 ? 1 : width + gap;
        rows_.batch_stride = layout == 1 ? width * num_anchors : num_anchors * (width + gap);
        const int64_t count = batch_size * num_anchors * (width + gap);
        size_ = static_cast<size_t>(count == 0 ? 0 : count - gap);  // nothing after the last number
        values_.reset(new float[size_]);
        for (size_t i = 0; i < size_; ++i) values_[i] = bytes.number();
        rows_.data = values_.get();
        if (layout == 3 && num_anchors > 0) {  // backwards
            rows_.data += (num_anchors - 1) * rows_.anchor_stride;
            rows_.anchor_stride = -rows_.anchor_stride;
        }
    }

    AnchorRows rows() const { return rows_; }
    AnchorRows shared_rows() const {
        AnchorRows rows = rows_;
        rows.batch_stride = 0;
        return rows;
    }

   private:
    AnchorRows rows_;
    size_t size_ = 0;
    std::unique_ptr<float[]> values_;
};

// Mostly a positive number, seldom one that no attribute may be.
float positive(Bytes& bytes) {
    const float value = bytes.number();
    return bytes.below(32) == 0 ? value : smaller(absolute(value), 1e6f) + 0.125f;
}

DecodeNmsAttributes attributes_of(Bytes& bytes, int64_t num_anchors, int64_t num_classes) {
    DecodeNmsAttributes attributes;
    attributes.box_coding = static_cast<BoxCoding>(bytes.below(64) == 0 ? 9 : bytes.below(9));  // one is unknown
    if (bytes.flag()) attributes.box_weights[bytes.below(4)] = positive(bytes);
    if (bytes.flag()) attributes.delta_clip = positive(bytes);
    const int64_t num_levels = 1 + bytes.below(3);
    int64_t left = num_anchors;
    for (int64_t level = 0; level < num_levels; ++level) {
        const int64_t size = level + 1 == num_levels ? left : bytes.below(left + 1);
        attributes.level_sizes.push_back(bytes.below(64) == 0 ? bytes.below(300) - 5 : size);
        left -= size;
        attributes.level_strides.push_back(bytes.number());
        attributes.level_scale_xy.push_back(bytes.number());
    }
    if (bytes.flag()) attributes.level_scale_xy.resize(static_cast<size_t>(bytes.below(8) == 0 ? 2 : 0));
    if (bytes.below(16) == 0) attributes.level_strides.clear();
    attributes.score_activation = static_cast<Activation>(bytes.below(3));
    attributes.objectness_activation = static_cast<Activation>(bytes.below(2));
    attributes.score_combination = static_cast<Combination>(bytes.below(3));
    attributes.background_class = bytes.below(num_classes + (bytes.below(32) == 0 ? 3 : 1)) - 1;
    attributes.class_specific_boxes = bytes.flag();
    attributes.multi_label = bytes.flag();
    attributes.with_nms = bytes.below(4) != 0;
    attributes.class_agnostic = bytes.flag();
    attributes.overlap = bytes.flag() ? Overlap::diou : Overlap::iou;
    attributes.pre_nms_top_k = bytes.flag() ? 0 : bytes.below(40);
    attributes.top_k_scope = static_cast<TopKScope>(bytes.below(3));
    attributes.clip_to_image = bytes.flag();
    attributes.min_size = bytes.flag() ? 0.0f : positive(bytes);
    attributes.max_detections = bytes.below(64) == 0 ? 0 : 1 + bytes.below(40);
    return attributes;
}

// Outputs of exactly the right size, filled with rubbish.
struct Outputs {
    Outputs(int64_t batch_size, int64_t max_detections)
        : num_detections(static_cast<size_t>(batch_size), -7),
          boxes(static_cast<size_t>(batch_size * max_detections * 4), -7.0f),
          scores(static_cast<size_t>(batch_size * max_detections), -7.0f),
          class_ids(static_cast<size_t>(batch_size * max_detections), -7) {}

    DecodeNmsOutputs pointers() { return {num_detections.data(), boxes.data(), scores.data(), class_ids.data()}; }

    bool equals(const Outputs& other) const {
        return num_detections == other.num_detections && class_ids == other.class_ids &&
               boxes == other.boxes && scores == other.scores;
    }

    std::vector<int32_t> num_detections;
    std::vector<float> boxes;
    std::vector<float> scores;
    std::vector<int32_t> class_ids;
};

Box box_at(const Outputs& outputs, int64_t place) {
    const float* corners = outputs.boxes.data() + 4 * place;
    return {corners[0], corners[1], corners[2], corners[3]};
}

void check_detection(const Outputs& outputs, int64_t first, int64_t place, const DecodeNmsAttributes& attributes,
                     const DecodeNmsInputs& inputs) {
    const Box box = box_at(outputs, place);
    const float score = outputs.scores[static_cast<size_t>(place)];
    const int32_t class_id = outputs.class_ids[static_cast<size_t>(place)];
    require(is_finite(box), "boxes are finite");
    require(is_finite(score) && score > inputs.score_threshold, "scores are above the threshold");
    require(class_id >= 0 && class_id < inputs.num_classes - (attributes.background_class >= 0 ? 1 : 0),
            "class ids are those of the classes");
    require(place == first || outputs.scores[static_cast<size_t>(place - 1)] >= score, "scores fall");
    require(!(attributes.min_size > 0.0f) ||
                (box.x2 - box.x1 >= attributes.min_size && box.y2 - box.y1 >= attributes.min_size),
            "sides reach the minimum");
    if (!attributes.with_nms || !(box_area(box) > 0.0f)) return;
    for (int64_t better = first; better < place; ++better) {
        const Box other = box_at(outputs, better);
        const bool may_suppress =
            attributes.class_agnostic || outputs.class_ids[static_cast<size_t>(better)] == class_id;
        if (!may_suppress || !(box_area(other) > 0.0f)) continue;
        const float overlap = overlap_of(other, box_area(other), box, box_area(box), attributes.overlap);
        require(!(overlap > inputs.iou_threshold), "no detection overlaps a better one");
    }
}

void check_outputs(const Outputs& outputs, const DecodeNmsAttributes& attributes, const DecodeNmsInputs& inputs) {
    for (int64_t item = 0; item < inputs.batch_size; ++item) {
        const int64_t first = item * attributes.max_detections;
        const int64_t count = outputs.num_detections[static_cast<size_t>(item)];
        require(count >= 0 && count <= attributes.max_detections, "there are 0 to max_detections detections");
        for (int64_t place = first; place < first + count; ++place) {
            check_detection(outputs, first, place, attributes, inputs);
        }
        for (int64_t place = first + count; place < first + attributes.max_detections; ++place) {
            const size_t index = static_cast<size_t>(place);
            const bool is_padding = outputs.scores[index] == 0.0f && outputs.class_ids[index] == -1 &&
                                    outputs.boxes[4 * index] == 0.0f && outputs.boxes[4 * index + 3] == 0.0f;
            require(is_padding, "the rest is padding");
        }
    }
}

}  // namespace

uint64_t check_decode_nms(const uint8_t* data, size_t size) {
    Bytes bytes(data, size);
    DecodeNmsInputs inputs;
    inputs.batch_size = bytes.below(4);
    // Mostly small, which is fast; now and then many classes, or more than one block of anchors.
#if defined(BOXWRIGHT_SMALL_BLOCKS)
    constexpr int64_t many_anchors = 100;
#else
    constexpr int64_t many_anchors = 6000;
#endif
    inputs.num_anchors = bytes.below(24);
    inputs.num_classes = bytes.below(32) == 0 ? 0 : 1 + bytes.below(8);
    const int64_t size_class = bytes.below(256);
    if (size_class < 8) inputs.num_classes = bytes.below(70);
    if (size_class == 8) inputs.num_anchors = bytes.below(many_anchors);
    const DecodeNmsAttributes attributes = attributes_of(bytes, inputs.num_anchors, inputs.num_classes);
    inputs.score_threshold = bytes.below(32) == 0 ? bytes.number() : static_cast<float>(bytes.below(11)) * 0.1f;
    inputs.iou_threshold = bytes.below(32) == 0 ? bytes.number() : static_cast<float>(bytes.below(11)) * 0.1f;
    const bool has_objectness = (attributes.score_combination != Combination::none) != (bytes.below(64) == 0);
    const bool has_priors = bytes.below(8) != 0;
    const int num_threads = 1 + static_cast<int>(bytes.below(64) == 0 ? 2 : 0);

    const int64_t box_width = attributes.class_specific_boxes ? 4 * inputs.num_classes : 4;
    const Head boxes(bytes, inputs.batch_size, inputs.num_anchors, box_width);
    const Head logits(bytes, inputs.batch_size, inputs.num_anchors, inputs.num_classes);
    const Head objectness(bytes, inputs.batch_size, inputs.num_anchors, 1);
    const bool has_shared_priors = bytes.flag();
    const Head priors(bytes, has_shared_priors ? 1 : inputs.batch_size, inputs.num_anchors, 4);
    std::vector<float> image_sizes;
    for (int64_t i = 0; i < 2 * inputs.batch_size; ++i) image_sizes.push_back(std::fabs(bytes.number()) * 20.0f);
    inputs.box_regression = boxes.rows();
    inputs.class_logits = logits.rows();
    if (has_objectness) inputs.objectness = objectness.rows();
    if (has_priors) inputs.priors = has_shared_priors ? priors.shared_rows() : priors.rows();
    if (attributes.clip_to_image) inputs.image_size_hw = image_sizes.data();

    const bool is_valid = inputs.validate(attributes).empty();
    Outputs expected(inputs.batch_size, attributes.max_detections);
    static DecodeNmsWorkspace workspace;  // a new one each time would be most of the work
    try {
        decode_nms(attributes, inputs, expected.pointers(), workspace, num_threads, InstructionSet::plain);
        require(is_valid, "what does not fit is refused");
    } catch (const std::invalid_argument&) {
        require(!is_valid, "what fits is not refused");
        return 0;
    }
    check_outputs(expected, attributes, inputs);
    for (const InstructionSet instruction_set : available_instruction_sets()) {
        if (instruction_set == InstructionSet::plain && num_threads == 1) continue;  // that is what is expected
        Outputs outputs(inputs.batch_size, attributes.max_detections);
        decode_nms(attributes, inputs, outputs.pointers(), workspace, 1, instruction_set);
        require(outputs.equals(expected), "all instruction sets give the same");
    }
    return digest_of(expected.boxes, digest_of(expected.scores, digest_of(expected.class_ids)));
}

uint64_t check_letterbox(const uint8_t* data, size_t size) {
    Bytes bytes(data, size);
    ImageView image;
    image.height = bytes.below(20);
    image.width = bytes.below(40);
    const int64_t gap = bytes.below(4);
    const bool is_upside_down = bytes.flag();
    LetterboxParameters parameters;
    parameters.resized_height = bytes.below(20);
    parameters.resized_width = bytes.below(40);
    parameters.top = bytes.below(8) - 1;
    parameters.left = bytes.below(8) - 1;
    parameters.height = parameters.top + parameters.resized_height + bytes.below(8) - 1;
    parameters.width = parameters.left + parameters.resized_width + bytes.below(8) - 1;
    parameters.swap_channels = bytes.flag();
    for (int channel = 0; channel < 3; ++channel) {
        parameters.scale[channel] = 1.0f;
        parameters.pad_value[channel] = static_cast<float>(bytes.byte());
    }

    const int64_t row_bytes = 3 * image.width + gap;
    const size_t num_bytes =
        image.height == 0 ? 0 : static_cast<size_t>(image.height * row_bytes - gap);  // none after the last pixel
    std::unique_ptr<uint8_t[]> pixels(new uint8_t[num_bytes]);
    for (size_t i = 0; i < num_bytes; ++i) pixels[i] = bytes.byte();
    image.data = pixels.get();
    image.row_stride = row_bytes;
    if (is_upside_down && image.height > 0) {
        image.data += (image.height - 1) * row_bytes;
        image.row_stride = -row_bytes;
    }

    const bool is_valid = parameters.validate(image).empty();
    const size_t canvas_size = is_valid ? static_cast<size_t>(3 * parameters.height * parameters.width) : 0;
    static LetterboxWorkspace workspace;
    std::vector<float> expected(canvas_size, -7.0f);
    try {
        letterbox(image, parameters, expected.data(), workspace, InstructionSet::plain);
        require(is_valid, "what does not fit is refused");
    } catch (const std::invalid_argument&) {
        require(!is_valid, "what fits is not refused");
        return 0;
    }
    for (const float value : expected) {
        require(value >= 0.0f && value <= 255.0f && value == std::floor(value), "all values are grey levels");
    }
    for (const InstructionSet instruction_set : available_instruction_sets()) {
        if (instruction_set == InstructionSet::plain) continue;  // that is what is expected
        std::vector<float> canvas(canvas_size, -7.0f);
        letterbox(image, parameters, canvas.data(), workspace, instruction_set);
        require(canvas == expected, "all instruction sets give the same");
    }
    return digest_of(expected);
}

}  // namespace fuzz
}  // namespace boxwright
