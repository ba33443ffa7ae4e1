// The steps of the CUDA kernels against the CPU kernels on random cases, in arrays of exactly their size: under
// AddressSanitizer and UBSan it shows every step beyond them, and sums that overflow.
//   cuda_steps_test [number of cases] [seed]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "emulated_block.h"

namespace boxwright {
namespace {

class Random {
   public:
    explicit Random(uint32_t seed) : engine_(seed) {}

    int64_t below(int64_t limit) { return std::uniform_int_distribution<int64_t>(0, limit - 1)(engine_); }
    bool flag() { return below(2) != 0; }
    bool seldom() { return below(20) == 0; }

    float normal(float mean, float spread) { return std::normal_distribution<float>(mean, spread)(engine_); }

   private:
    std::mt19937 engine_;
};

constexpr float kOdd[] = {0.0f, -0.0f, 1e-45f, 3e38f, -3e38f, 88.72f, -103.9f, 1.0f};

// Numbers in memory of exactly their size.
class Numbers {
   public:
    Numbers(Random& random, int64_t count, float mean, float spread, float step, bool has_odd)
        : size_(count), values_(new float[static_cast<size_t>(count)]) {
        for (int64_t i = 0; i < count; ++i) {
            float value = random.normal(mean, spread);
            if (step > 0.0f) value = std::round(value / step) * step;
            if (has_odd && random.seldom()) value = odd(random);
            values_[static_cast<size_t>(i)] = value;
        }
    }

    const float* data() const { return size_ == 0 ? nullptr : values_.get(); }

   private:
    static float odd(Random& random) {
        const int64_t choice = random.below(11);
        if (choice == 8) return std::nanf("");
        if (choice > 8) return choice == 9 ? positive_infinity() : -positive_infinity();
        return kOdd[choice];
    }

    int64_t size_;
    std::unique_ptr<float[]> values_;
};

struct Sizes {
    int64_t batch, anchors, classes;
};

DecodeNmsAttributes attributes_of(Random& random, const Sizes& sizes) {
    DecodeNmsAttributes attributes;
    attributes.box_coding = static_cast<BoxCoding>(random.below(9));
    attributes.delta_clip = random.flag() ? 0.0f : 4.0f;
    int64_t left = sizes.anchors;
    const int64_t num_levels = 1 + random.below(4);
    for (int64_t level = 0; level < num_levels; ++level) {
        const int64_t size = level + 1 == num_levels ? left : random.below(left + 1);
        attributes.level_sizes.push_back(size);
        attributes.level_strides.push_back(static_cast<float>(8 << level));
        left -= size;
    }
    if (random.flag()) attributes.level_scale_xy.assign(static_cast<size_t>(num_levels), 1.1f);
    attributes.score_activation = static_cast<Activation>(random.below(3));
    attributes.objectness_activation = static_cast<Activation>(random.below(2));
    attributes.score_combination = static_cast<Combination>(random.below(3));
    attributes.background_class = random.below(sizes.classes + 1) - 1;
    attributes.class_specific_boxes = random.flag();
    attributes.multi_label = random.flag();
    attributes.with_nms = random.below(4) != 0;
    attributes.class_agnostic = random.flag();
    attributes.overlap = random.flag() ? Overlap::diou : Overlap::iou;
    attributes.pre_nms_top_k = random.flag() ? 0 : 1 + random.below(300);
    attributes.top_k_scope = static_cast<TopKScope>(random.below(3));
    attributes.clip_to_image = random.flag();
    attributes.min_size = random.flag() ? 0.0f : 2.0f;
    attributes.max_detections = 1 + random.below(random.flag() ? 400 : 20);
    return attributes;
}

// Results in memory of exactly their size, filled with rubbish.
struct Results {
    Results(int64_t batch, int64_t top)
        : num_places(static_cast<size_t>(batch * top)),
          num_detections(new int32_t[static_cast<size_t>(batch)]),
          boxes(new float[4 * num_places]),
          scores(new float[num_places]),
          class_ids(new int32_t[num_places]) {
        for (size_t i = 0; i < 4 * num_places; ++i) boxes[i] = -7.0f;
        for (size_t i = 0; i < num_places; ++i) scores[i] = -7.0f;
    }

    DecodeNmsOutputs pointers() { return {num_detections.get(), boxes.get(), scores.get(), class_ids.get()}; }

    size_t num_places;
    std::unique_ptr<int32_t[]> num_detections;
    std::unique_ptr<float[]> boxes;
    std::unique_ptr<float[]> scores;
    std::unique_ptr<int32_t[]> class_ids;
};

bool are_equal(const Results& a, const Results& b, int64_t batch) {
    bool equal = std::equal(a.num_detections.get(), a.num_detections.get() + batch, b.num_detections.get());
    equal = equal && std::equal(a.boxes.get(), a.boxes.get() + 4 * a.num_places, b.boxes.get());
    equal = equal && std::equal(a.scores.get(), a.scores.get() + a.num_places, b.scores.get());
    return equal && std::equal(a.class_ids.get(), a.class_ids.get() + a.num_places, b.class_ids.get());
}

// Returns the number of detections, -1 where the results differ.
int64_t run_case(Random& random) {
    const Sizes sizes = {random.below(4), random.below(random.seldom() ? 3000 : 200),
                         1 + random.below(random.seldom() ? 3000 : 30)};
    if (sizes.anchors * sizes.classes > 50000) return 0;
    const DecodeNmsAttributes attributes = attributes_of(random, sizes);
    const bool has_odd = random.flag(), has_item_priors = random.flag();
    const float step = random.flag() ? 0.25f : 0.0f;
    const bool is_plain = attributes.score_activation == Activation::none;
    const int64_t rows = sizes.batch * sizes.anchors, box_width = attributes.class_specific_boxes ? 4 * sizes.classes : 4;
    const Numbers boxes(random, rows * box_width, 0.5f, 0.5f, step, has_odd);
    const Numbers logits(random, rows * sizes.classes, is_plain ? 0.3f : -1.0f, is_plain ? 0.3f : 2.0f, step, has_odd);
    const Numbers objectness(random, rows, 0.4f, 1.0f, step, has_odd);
    const Numbers priors(random, 4 * (has_item_priors ? rows : sizes.anchors), 60.0f, 30.0f, 8.0f, has_odd);
    const Numbers image_sizes(random, 2 * sizes.batch, 100.0f, 20.0f, 0.0f, false);
    const std::unique_ptr<float> score_threshold(new float(random.flag() ? 0.001f : 0.3f));
    const std::unique_ptr<float> iou_threshold(new float(random.flag() ? 0.5f : 0.7f));
    const bool combines = attributes.score_combination != Combination::none;

    DecodeNmsInputs expected_inputs;
    expected_inputs.batch_size = sizes.batch;
    expected_inputs.num_anchors = sizes.anchors;
    expected_inputs.num_classes = sizes.classes;
    expected_inputs.box_regression = {boxes.data(), sizes.anchors * box_width, box_width, 1};
    expected_inputs.class_logits = {logits.data(), sizes.anchors * sizes.classes, sizes.classes, 1};
    if (combines) expected_inputs.objectness = {objectness.data(), sizes.anchors, 1, 1};
    expected_inputs.priors = {priors.data(), has_item_priors ? 4 * sizes.anchors : 0, 4, 1};
    if (attributes.clip_to_image) expected_inputs.image_size_hw = image_sizes.data();
    expected_inputs.score_threshold = *score_threshold;
    expected_inputs.iou_threshold = *iou_threshold;
    Results expected(sizes.batch, attributes.max_detections), actual(sizes.batch, attributes.max_detections);
    DecodeNmsWorkspace workspace;
    decode_nms(attributes, expected_inputs, expected.pointers(), workspace);

    DecodeNmsCudaInputs inputs;
    inputs.batch_size = sizes.batch;
    inputs.num_anchors = sizes.anchors;
    inputs.num_classes = sizes.classes;
    inputs.box_regression.data = boxes.data();
    inputs.class_logits.data = logits.data();
    if (combines) inputs.objectness.data = objectness.data();
    inputs.priors = priors.data();
    inputs.has_priors_for_each_item = has_item_priors;
    inputs.image_size_hw = expected_inputs.image_size_hw;
    inputs.score_threshold = score_threshold.get();
    inputs.iou_threshold = iou_threshold.get();
    const size_t size = decode_nms_cuda_workspace_size(attributes, sizes.batch, sizes.anchors, sizes.classes);
    const std::unique_ptr<char[]> memory(new char[size]);
    const auto order = static_cast<cuda::ThreadOrder>(random.below(3));
    cuda::emulate_decode_nms(attributes, inputs, actual.pointers(), memory.get(), order);
    if (!are_equal(actual, expected, sizes.batch)) return -1;
    int64_t num_detections = 0;
    for (int64_t item = 0; item < sizes.batch; ++item) num_detections += expected.num_detections[static_cast<size_t>(item)];
    return num_detections;
}

}  // namespace
}  // namespace boxwright

int main(int count, char** arguments) {
    const long num_cases = count > 1 ? std::atol(arguments[1]) : 300;
    const long seed = count > 2 ? std::atol(arguments[2]) : 0;
    int64_t num_detections = 0;
    for (long number = seed; number < seed + num_cases; ++number) {
        boxwright::Random random(static_cast<uint32_t>(number));
        const int64_t found = boxwright::run_case(random);
        if (found < 0) {
            std::printf("case %ld: the CUDA steps and the CPU kernels differ\n", number);
            return 1;
        }
        num_detections += found;
    }
    std::printf("%ld cases, %ld detections\n", num_cases, static_cast<long>(num_detections));
    return num_detections > 0 ? 0 : 1;
}
