// What the Python tests cannot see of the kernels: memory beyond the arrays (under AddressSanitizer), allocations, and
// the accuracy of the elementary functions. Build it with -DBOXWRIGHT_TESTS=ON, and -DBOXWRIGHT_SANITIZE=ON.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "case_file.h"
#include "check.h"
#include "decode_nms.h"
#include "fuzz/random_case.h"
#include "letterbox.h"
#include "vector_kernels.h"

namespace {

std::atomic<long> num_allocations{0};

}  // namespace

void* operator new(std::size_t size) {
    ++num_allocations;
    void* memory = std::malloc(size == 0 ? 1 : size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}
void* operator new(std::size_t size, std::align_val_t alignment) {
    ++num_allocations;
    const std::size_t boundary = static_cast<std::size_t>(alignment);
    void* memory = std::aligned_alloc(boundary, (size + boundary - 1) / boundary * boundary);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace boxwright {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<float> random_floats(size_t count, float mean, float spread, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(mean, spread);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
}

double relative_error(double value, double exact) { return exact == 0 ? std::fabs(value) : std::fabs(value / exact - 1); }

TEST(exponential_is_within_one_unit_of_the_last_place) {
    double worst = 0;
    float previous = 0;
    bool rises = true;
    for (int step = 0; step <= 4'000'000; ++step) {
        const float x = -87.0f + static_cast<float>(step) * (175.7f / 4'000'000.0f);
        const float value = exponential(x);
        worst = std::fmax(worst, relative_error(value, std::exp(static_cast<double>(x))));
        rises = rises && value >= previous;
        previous = value;
    }
    CHECK(worst < 1.2e-7);
    CHECK(rises);
}

TEST(exponential_keeps_to_ieee_at_the_ends) {
    CHECK(exponential(0.0f) == 1.0f);
    CHECK(exponential(-kInfinity) == 0.0f);
    CHECK(exponential(-104.5f) == 0.0f);
    CHECK(exponential(kInfinity) == kInfinity);
    CHECK(exponential(88.73f) == kInfinity);
    CHECK(std::isfinite(exponential(88.72f)));
    CHECK(std::isnan(exponential(kNaN)));
    CHECK(std::isnan(exponential(-kNaN)));
    CHECK(std::fabs(exponential(-100.0f) - std::exp(-100.0)) < 2e-45);  // a subnormal number
    CHECK(sigmoid(kInfinity) == 1.0f);
    CHECK(sigmoid(-kInfinity) == 0.0f);
}

TEST(the_logarithm_is_never_above_the_exact_one) {
    std::mt19937 random(1);
    std::uniform_real_distribution<double> exponents(-37, 38);
    for (int i = 0; i < 1'000'000; ++i) {
        const float x = static_cast<float>(std::pow(10.0, exponents(random)));
        const double exact = std::log(static_cast<double>(x)), gap = exact - logarithm_from_below(x);
        const double roundings = 2e-7 * (1 + std::fabs(exact));
        if (gap < -roundings || gap > 2e-5 + roundings) {
            CHECK(gap >= -roundings && gap <= 2e-5 + roundings);
            return;
        }
    }
}

TEST(raw_thresholds_lose_no_candidate) {
    const std::vector<float> logits = random_floats(20'000, -3.0f, 4.0f, 2), raw_factors = random_floats(20'000, 0.0f, 3.0f, 3);
    std::vector<float> factors(raw_factors.size()), thresholds(raw_factors.size());
    for (size_t i = 0; i < factors.size(); ++i) factors[i] = i % 7 == 0 ? raw_factors[i] : sigmoid(raw_factors[i]);
    for (const InstructionSet set : available_instruction_sets()) {
        for (const float product : {0.0f, 1e-9f, 0.001f, 0.25f, 0.999f, 1.0f}) {
            vector_kernels(set).raw_thresholds(factors.data(), factors.size(), product, thresholds.data());
            size_t passed = 0, needed = 0;
            for (size_t i = 0; i < factors.size(); ++i) {
                const bool is_candidate = sigmoid(logits[i]) * factors[i] > product;
                const bool passes = logits[i] > thresholds[i];
                CHECK(passes || !is_candidate);
                passed += passes;
                needed += is_candidate;
            }
            CHECK(passed <= needed + 5);  // and let through next to nothing else
        }
    }
}

TEST(selection_takes_finite_values_above_the_threshold_alone) {
    for (const InstructionSet set : available_instruction_sets()) {
        const VectorKernels& kernels = vector_kernels(set);
        for (size_t count = 0; count < 200; ++count) {
            // Exactly as long as need be: a load beyond the end is seen by AddressSanitizer.
            std::unique_ptr<float[]> values(new float[count]), limits(new float[count]);
            const std::vector<float> noise = random_floats(count, 0.0f, 1.0f, static_cast<unsigned>(count));
            const float odd[] = {kNaN, kInfinity, -kInfinity, 0.25f, kMaxFinite, -kMaxFinite};
            for (size_t i = 0; i < count; ++i) {
                values[i] = i % 5 == 0 ? odd[i / 5 % 6] : noise[i];
                limits[i] = i % 3 == 0 ? kInfinity : 0.25f;
            }
            std::vector<uint32_t> expected, expected_each, positions(count + 16);
            for (size_t i = 0; i < count; ++i) {
                if (!(values[i] > 0.25f) || std::isinf(values[i])) continue;
                expected.push_back(static_cast<uint32_t>(i));
                if (i % 3 != 0) expected_each.push_back(static_cast<uint32_t>(i));
            }
            size_t selected = kernels.select_above(values.get(), count, 0.25f, positions.data());
            CHECK(std::vector<uint32_t>(positions.begin(), positions.begin() + static_cast<long>(selected)) == expected);
            selected = kernels.select_above_each(values.get(), limits.get(), count, positions.data());
            CHECK(std::vector<uint32_t>(positions.begin(), positions.begin() + static_cast<long>(selected)) == expected_each);
            float largest = -kInfinity;
            for (size_t i = 0; i < count; ++i) {
                if (std::isfinite(values[i])) largest = std::fmax(largest, values[i]);
            }
            CHECK(kernels.max_finite(values.get(), count) == largest);
        }
    }
}

struct Call {
    DecodeNmsAttributes attributes;
    DecodeNmsInputs inputs;
    std::vector<float> boxes, logits, objectness, priors, out_boxes, out_scores;
    std::vector<int32_t> out_counts, out_classes;

    DecodeNmsOutputs outputs() { return {out_counts.data(), out_boxes.data(), out_scores.data(), out_classes.data()}; }
};

// YOLOX's heads of 100 rows of classes, or, `by_class`, a row for each class.
Call make_call(int64_t num_anchors, bool by_class, bool multi_label, unsigned seed) {
    const int64_t num_classes = 20, batch_size = 3;
    Call call;
    call.attributes.box_coding = BoxCoding::yolox;
    call.attributes.score_combination = Combination::multiply;
    call.attributes.multi_label = multi_label;
    const size_t total = static_cast<size_t>(batch_size * num_anchors);
    call.boxes = random_floats(4 * total, 0.0f, 0.5f, seed);
    call.logits = random_floats(static_cast<size_t>(num_classes) * total, -2.0f, 2.0f, seed + 1);
    call.objectness = random_floats(total, -1.0f, 2.0f, seed + 2);
    call.priors = random_floats(4 * static_cast<size_t>(num_anchors), 100.0f, 60.0f, seed + 3);
    DecodeNmsInputs& inputs = call.inputs;
    inputs.batch_size = batch_size;
    inputs.num_anchors = num_anchors;
    inputs.num_classes = num_classes;
    inputs.box_regression = {call.boxes.data(), 4 * num_anchors, 4, 1};
    inputs.class_logits = {call.logits.data(), num_classes * num_anchors, by_class ? 1 : num_classes,
                           by_class ? num_anchors : 1};
    inputs.objectness = {call.objectness.data(), num_anchors, 1, 1};
    inputs.priors = {call.priors.data(), 0, 4, 1};
    inputs.score_threshold = 0.05f;
    inputs.iou_threshold = 0.5f;
    const size_t top = static_cast<size_t>(batch_size * call.attributes.max_detections);
    call.out_counts.resize(static_cast<size_t>(batch_size));
    call.out_boxes.resize(4 * top);
    call.out_scores.resize(top);
    call.out_classes.resize(top);
    return call;
}

TEST(a_workspace_that_has_grown_allocates_no_more) {
    for (const bool by_class : {false, true}) {
        for (const bool multi_label : {false, true}) {
            DecodeNmsWorkspace workspace;
            Call call = make_call(5000, by_class, multi_label, 10);
            decode_nms(call.attributes, call.inputs, call.outputs(), workspace);
            CHECK(call.out_counts[0] > 100);
            const long before = num_allocations;
            decode_nms(call.attributes, call.inputs, call.outputs(), workspace);
            CHECK(num_allocations == before);
            Call smaller = make_call(700, by_class, multi_label, 20);
            const long before_smaller = num_allocations;
            decode_nms(smaller.attributes, smaller.inputs, smaller.outputs(), workspace);
            CHECK(num_allocations == before_smaller);
        }
    }
}

// Each rule of scores, top-k and suppression has buffers of its own.
TEST(no_rule_allocates_in_steady_state) {
    int num_found = 0;
    for (int rules = 0; rules < 2 * 3 * 3 * 64; ++rules) {
        const int flags = rules / 18;
        Call call = make_call(600, (rules & 1) != 0, (flags & 1) != 0, static_cast<unsigned>(rules));
        DecodeNmsAttributes& attributes = call.attributes;
        attributes.score_activation = static_cast<Activation>(rules / 2 % 3);
        attributes.score_combination = static_cast<Combination>(rules / 6 % 3);
        if (attributes.score_combination == Combination::none) call.inputs.objectness = {};
        attributes.class_agnostic = (flags & 2) != 0;
        attributes.pre_nms_top_k = (flags & 4) != 0 ? 100 : 0;
        attributes.top_k_scope = (flags & 8) != 0 ? TopKScope::class_ : TopKScope::image;
        attributes.with_nms = (flags & 16) == 0;
        attributes.background_class = (flags & 32) != 0 ? 3 : -1;
        DecodeNmsWorkspace workspace;
        decode_nms(attributes, call.inputs, call.outputs(), workspace);
        num_found += call.out_counts[1] > 0;
        const long before = num_allocations;
        decode_nms(attributes, call.inputs, call.outputs(), workspace);
        CHECK(num_allocations == before);
    }
    CHECK(num_found > 1000);
}

TEST(what_threads_allocate_does_not_grow_with_the_input) {
    const auto allocations_of = [](int64_t num_anchors) {
        DecodeNmsWorkspace workspace;
        Call call = make_call(num_anchors, false, true, 50);
        // Which thread takes which image is chance; after many calls every one has taken all of them.
        for (int round = 0; round < 40; ++round) decode_nms(call.attributes, call.inputs, call.outputs(), workspace, 3);
        long fewest = std::numeric_limits<long>::max();
        for (int round = 0; round < 20; ++round) {
            const long before = num_allocations;
            decode_nms(call.attributes, call.inputs, call.outputs(), workspace, 3);
            fewest = std::min<long>(fewest, num_allocations - before);
        }
        return fewest;
    };
    CHECK(allocations_of(4000) == allocations_of(40));
}

TEST(the_letterbox_allocates_no_more_either) {
    const std::vector<uint8_t> pixels(3 * 90 * 120, 77);
    const ImageView image = {pixels.data(), 90, 120, 360};
    LetterboxParameters parameters;
    parameters.resized_height = 60;
    parameters.resized_width = 80;
    parameters.top = 10;
    parameters.height = parameters.width = 80;
    std::vector<float> canvas(3 * 80 * 80);
    LetterboxWorkspace workspace;
    letterbox(image, parameters, canvas.data(), workspace);
    const long before = num_allocations;
    letterbox(image, parameters, canvas.data(), workspace);
    CHECK(num_allocations == before);
    CHECK(canvas[0] == 114.0f && canvas[10 * 80] == 77.0f && canvas[69 * 80 + 79] == 77.0f && canvas[70 * 80] == 114.0f);
}

TEST(threads_share_the_batch_and_change_nothing) {
    Call call = make_call(900, true, true, 30);
    DecodeNmsWorkspace workspace;
    decode_nms(call.attributes, call.inputs, call.outputs(), workspace);
    const std::vector<float> boxes = call.out_boxes, scores = call.out_scores;
    const std::vector<int32_t> counts = call.out_counts;
    for (const int num_threads : {2, 3, 8}) {
        std::fill(call.out_boxes.begin(), call.out_boxes.end(), -1.0f);
        decode_nms(call.attributes, call.inputs, call.outputs(), workspace, num_threads);
        CHECK(call.out_boxes == boxes && call.out_scores == scores && call.out_counts == counts);
    }
}

TEST(what_does_not_fit_is_refused_with_a_sentence) {
    Call call = make_call(10, false, false, 40);
    DecodeNmsWorkspace workspace;
    const auto refusal = [&](const DecodeNmsAttributes& attributes, const DecodeNmsInputs& inputs) {
        try {
            decode_nms(attributes, inputs, call.outputs(), workspace);
        } catch (const std::invalid_argument& error) {
            return std::string(error.what());
        }
        return std::string("nothing");
    };
    DecodeNmsInputs inputs = call.inputs;
    inputs.iou_threshold = kNaN;
    CHECK(refusal(call.attributes, inputs).rfind("DecodeNMS input iou_threshold: expected a number in [0, 1], got ", 0) == 0);
    inputs = call.inputs;
    inputs.num_anchors = int64_t{1} << 40;
    CHECK(refusal(call.attributes, inputs).find("N * C below 2^32") != std::string::npos);
    inputs = call.inputs;
    inputs.priors.data = nullptr;
    CHECK(refusal(call.attributes, inputs).find("priors (N, 4)") != std::string::npos);
    DecodeNmsAttributes attributes = call.attributes;
    attributes.max_detections = 0;
    CHECK(refusal(attributes, call.inputs).find("max_detections") != std::string::npos);
    BoxCoding coding;
    CHECK(parse("anchor_delta", coding) && coding == BoxCoding::anchor_delta);
    CHECK(!parse("yolov9", coding));
}

// As a fuzzer does, without one: every compiler can run it. The digest is for comparing processors.
TEST(random_bytes_break_no_rule) {
    std::mt19937 random(5);
    std::vector<uint8_t> bytes;
    uint64_t digest = 0;
    int num_accepted = 0;
    for (int round = 0; round < 6000; ++round) {
        bytes.resize(random() % 3000);
        const bool is_tame = round % 2 == 0;
        for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(is_tame ? random() % 200 : random());
        const uint64_t of_decode_nms = fuzz::check_decode_nms(bytes.data(), bytes.size());
        num_accepted += of_decode_nms != 0;
        digest = digest * 31 + of_decode_nms;
        digest = digest * 31 + fuzz::check_letterbox(bytes.data(), bytes.size());
    }
    CHECK(num_accepted > 1000);
    std::printf("digest: %016llx\n", static_cast<unsigned long long>(digest));
}

std::vector<uint8_t> read_record(std::FILE* file, bool& is_complete) {
    uint8_t length[4];
    is_complete = std::fread(length, 1, 4, file) == 4;
    if (!is_complete) return {};
    std::vector<uint8_t> bytes(length[0] | size_t{length[1]} << 8 | size_t{length[2]} << 16 | size_t{length[3]} << 24);
    is_complete = std::fread(bytes.data(), 1, bytes.size(), file) == bytes.size();
    return bytes;
}

// A kept corpus (see corpus.py): what the fuzzers found worth trying.
int replay(const char* path, uint64_t (*check)(const uint8_t*, size_t)) {
    std::FILE* file = std::fopen(path, "rb");
    if (file == nullptr) {
        std::printf("cannot open %s\n", path);
        return 1;
    }
    bool is_complete = true;
    int num_records = 0;
    for (std::vector<uint8_t> bytes = read_record(file, is_complete); is_complete; bytes = read_record(file, is_complete)) {
        check(bytes.data(), bytes.size());
        ++num_records;
    }
    std::fclose(file);
    std::printf("replayed %d records of %s\n", num_records, path);
    return 0;
}

}  // namespace
}  // namespace boxwright

// Usage: kernels_test [--replay-only] [decode_nms CORPUS] [letterbox CORPUS] [cases FILE]
int main(int num_arguments, char** arguments) {
    const bool replays_only = num_arguments > 1 && std::string(arguments[1]) == "--replay-only";
    std::printf("instruction sets:");
    for (const auto set : boxwright::available_instruction_sets()) std::printf(" %s", boxwright::name_of(set));
    std::printf("\n");
    int status = replays_only ? 0 : run_all_tests();
    for (int i = replays_only ? 2 : 1; i + 1 < num_arguments; i += 2) {
        try {
            const std::string kind = arguments[i];
            if (kind == "cases") {
                status |= boxwright::replay_cases(arguments[i + 1]);
            } else {
                const bool is_letterbox = kind == "letterbox";
                status |= boxwright::replay(arguments[i + 1], is_letterbox ? boxwright::fuzz::check_letterbox
                                                                           : boxwright::fuzz::check_decode_nms);
            }
        } catch (const std::exception& error) {
            std::printf("%s: %s\n", arguments[i + 1], error.what());
            status = 1;
        }
    }
    return status;
}
