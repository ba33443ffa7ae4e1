// The first half of DecodeNMS on a GPU: many blocks look for the pairs of anchor and class that score above the
// threshold, and append them, in no order, to the keys of their image.
//
// A step is a function that every thread of a block calls. `block.each_thread` runs a phase, and the block waits until
// all threads are through with it; between phases threads know of each other only what lies in shared memory. So the
// same functions run on a GPU, and on the CPU as a loop over the threads of each phase, which is how they are tested.
// What decides whether a phase is run must be the same for all threads, and the phase must not change it.
#ifndef BOXWRIGHT_CUDA_SCAN_H
#define BOXWRIGHT_CUDA_SCAN_H

#include "numbers.h"

namespace boxwright {
namespace cuda {

struct FoundShared {
    uint64_t keys[kLogitsAPass];
    uint32_t num_keys;
    uint32_t num_to_write;
    uint32_t first_place;
};

struct ScanShared {
    FoundShared found;
    uint64_t best[kMaxRowsABlock];  // of a row, with one label: score, and the complement of its class; 0 for none
    float factors[kMaxRowsABlock];
    float raw_thresholds[kMaxRowsABlock];
};

struct SoftmaxShared {
    FoundShared found;
    uint64_t best[kSoftmaxRowsABlock];
    float maxima[kScanThreads];
    float sums[kScanThreads];
};

// The rows of a block.
struct Rows {
    uint32_t first;
    uint32_t count;
    size_t first_of_item;  // among the rows of the batch
};

template <typename Block>
BOXWRIGHT_DEVICE Rows rows_of(const Block& block, const Parameters& p) {
    const uint32_t first = block.index() * p.rows_a_block, left = p.num_anchors - first;
    return {first, left < p.rows_a_block ? left : p.rows_a_block, block.item() * static_cast<size_t>(p.num_anchors)};
}

// ---- scores ----

// What the scores of a row are multiplied with; NaN where the row has no candidates.
BOXWRIGHT_DEVICE float factor_of(const Parameters& p, size_t row) {
    if (p.score_combination == Combination::none) return 1.0f;
    const float objectness = load(p.objectness, row);
    if (!is_finite(objectness)) return float_of_bits(0x7FC00000u);
    return p.objectness_activation == Activation::sigmoid ? sigmoid(objectness) : objectness;
}

// What a logit must be above for its score to be above the threshold, or a little less.
BOXWRIGHT_DEVICE float raw_threshold_of(const Parameters& p, float score_threshold, float factor) {
    const bool is_plain = p.score_activation == Activation::none;
    if (is_plain && p.score_combination == Combination::none) return score_threshold;
    const float product = p.score_combination == Combination::sqrt ? score_threshold * score_threshold : score_threshold;
    // Numbers near the smallest of float32 cannot be lowered by so little.
    const float lowered = product < 1e-30f ? 0.0f : product * (1.0f - 8e-6f);
    if (factor != factor) return positive_infinity();
    if (!is_plain) return raw_threshold(factor, lowered);
    return factor > 0.0f ? lowered / factor * (1.0f - 1e-6f) : -positive_infinity();  // two negative numbers make a score
}

BOXWRIGHT_DEVICE float combined(Combination combination, float class_score, float factor) {
    switch (combination) {
        case Combination::none: break;
        case Combination::multiply: return class_score * factor;
        case Combination::sqrt: return square_root(class_score * factor);
    }
    return class_score;
}

// ---- what is found ----

// With one label the best class of a row, the lowest at a tie, else every class.
template <typename Block>
BOXWRIGHT_DEVICE void note_score(Block& block, const Parameters& p, FoundShared& found, uint64_t& best, uint32_t anchor,
                                 uint32_t class_index, float score, float score_threshold) {
    if (!(score > score_threshold) || !is_finite(score) || class_index == p.background_class) return;
    if (p.multi_label) {
        found.keys[block.next_place(found.num_keys)] = key_of(score, class_index, anchor, p.num_anchors);
    } else {
        block.set_to_larger(best, static_cast<uint64_t>(float_bits(score)) << 32 | ~class_index);
    }
}

template <typename Block>
BOXWRIGHT_DEVICE void write_found(Block& block, const Parameters& p, FoundShared& found) {
    block.each_thread([&](uint32_t thread) {
        if (thread != 0) return;
        found.num_to_write = found.num_keys;
        found.num_keys = 0;
        if (found.num_to_write > 0) found.first_place = block.add(p.num_candidates[block.item()], found.num_to_write);
    });
    block.each_thread([&](uint32_t thread) {
        uint64_t* keys = p.keys + block.item() * p.keys_an_item + found.first_place;
        for (uint32_t i = thread; i < found.num_to_write; i += kScanThreads) keys[i] = found.keys[i];
    });
}

template <typename Block>
BOXWRIGHT_DEVICE void write_best(Block& block, const Parameters& p, const Rows& rows, const uint64_t* best,
                                 FoundShared& found) {
    block.each_thread([&](uint32_t thread) {
        for (uint32_t row = thread; row < rows.count; row += kScanThreads) {
            if (best[row] == 0) continue;
            const float score = float_of_bits(static_cast<uint32_t>(best[row] >> 32));
            const uint32_t class_index = ~static_cast<uint32_t>(best[row]);
            found.keys[block.next_place(found.num_keys)] =
                key_of(score, class_index, rows.first + row, p.num_anchors);
        }
    });
    write_found(block, p, found);
}

// ---- logits that are compared one by one ----

// Sixteen bytes, which are read at once.
template <typename Logit>
struct alignas(16) Pack {
    static constexpr uint32_t size = 16 / sizeof(Logit);
    Logit values[size];
};

// Compares the logits [begin, end) of the rows, whose first logit is `logits`.
template <typename Logit, typename Block>
BOXWRIGHT_DEVICE void scan_logits(Block& block, const Parameters& p, const Rows& rows, const Logit* logits,
                                  uint32_t begin, uint32_t end, float score_threshold, ScanShared& shared,
                                  uint32_t thread) {
    constexpr uint32_t pack_size = Pack<Logit>::size;
    // Packs begin at multiples of their size; the first and the last may be incomplete.
    const uint32_t before =
        static_cast<uint32_t>(reinterpret_cast<uintptr_t>(logits + begin) / sizeof(Logit) % pack_size);
    const bool is_sigmoid = p.score_activation == Activation::sigmoid;
    const uint32_t num_packs = (end - begin + before + pack_size - 1) / pack_size;
    for (uint32_t number = thread; number < num_packs; number += kScanThreads) {
        const uint32_t pack_begin = number == 0 ? begin : begin + number * pack_size - before;
        const uint32_t pack_end = number + 1 == num_packs ? end : begin + (number + 1) * pack_size - before;
        uint32_t row = pack_begin / p.num_classes, class_index = pack_begin - row * p.num_classes;
        // Most rows of a detector with objectness need not be read.
        const bool is_one_row = class_index + (pack_end - pack_begin) <= p.num_classes;
        if (is_one_row && shared.raw_thresholds[row] == positive_infinity()) continue;
        const uint32_t count = pack_end - pack_begin;
        Pack<Logit> pack;
        if (count == pack_size) {
            pack = *reinterpret_cast<const Pack<Logit>*>(logits + pack_begin);
        } else {
            for (uint32_t i = 0; i < pack_size; ++i) pack.values[i] = logits[pack_begin + (i < count ? i : 0)];
        }
        // Unrolled, so that the pack stays in registers.
        BOXWRIGHT_UNROLL for (uint32_t i = 0; i < pack_size; ++i) {
            if (i == count) break;
            const float logit = to_float(pack.values[i]);
            if (logit > shared.raw_thresholds[row] && logit <= kMaxFinite) {
                const float score =
                    combined(p.score_combination, is_sigmoid ? sigmoid(logit) : logit, shared.factors[row]);
                note_score(block, p, shared.found, shared.best[row], rows.first + row, class_index, score,
                           score_threshold);
            }
            if (++class_index == p.num_classes) {
                class_index = 0;
                ++row;
            }
        }
    }
}

// For the activations sigmoid and none.
template <typename Logit, typename Block>
BOXWRIGHT_DEVICE void scan(Block& block, const Parameters& p, ScanShared& shared) {
    const Rows rows = rows_of(block, p);
    const float score_threshold = *p.score_threshold;
    const Logit* logits = static_cast<const Logit*>(p.class_logits.data) +
                          (rows.first_of_item + rows.first) * static_cast<size_t>(p.num_classes);
    block.each_thread([&](uint32_t thread) {
        if (thread == 0) shared.found.num_keys = 0;
        for (uint32_t row = thread; row < rows.count; row += kScanThreads) {
            const float factor = factor_of(p, rows.first_of_item + rows.first + row);
            shared.factors[row] = factor;
            shared.raw_thresholds[row] = raw_threshold_of(p, score_threshold, factor);
            shared.best[row] = 0;
        }
    });
    // More than one pass is for rows that are longer than a pass, one a block.
    const uint32_t num_logits = rows.count * p.num_classes;
    for (uint32_t begin = 0; begin < num_logits; begin += kLogitsAPass) {
        const uint32_t end = num_logits - begin < kLogitsAPass ? num_logits : begin + kLogitsAPass;
        block.each_thread([&](uint32_t thread) {
            scan_logits<Logit>(block, p, rows, logits, begin, end, score_threshold, shared, thread);
        });
        if (p.multi_label) write_found(block, p, shared.found);
    }
    if (!p.multi_label) write_best(block, p, rows, shared.best, shared.found);
}

// ---- softmax: a few threads a row ----

// Adds as decode_nms.h does: the upper half to the lower half, until one is left.
BOXWRIGHT_DEVICE float sum_of(const float* sums) {
    float added[kThreadsASoftmaxRow];
    for (uint32_t i = 0; i < kThreadsASoftmaxRow; ++i) added[i] = sums[i];
    for (uint32_t half = kThreadsASoftmaxRow / 2; half > 0; half /= 2) {
        for (uint32_t i = 0; i < half; ++i) added[i] += added[i + half];
    }
    return added[0];
}

// Infinity where a logit of the row is not finite.
BOXWRIGHT_DEVICE float maximum_of(const float* maxima) {
    float maximum = maxima[0];
    for (uint32_t i = 1; i < kThreadsASoftmaxRow; ++i) maximum = larger(maximum, maxima[i]);
    return maximum;
}

template <typename Logit, typename Block>
BOXWRIGHT_DEVICE void scan_softmax(Block& block, const Parameters& p, SoftmaxShared& shared) {
    constexpr uint32_t threads_a_row = kThreadsASoftmaxRow;
    const Rows rows = rows_of(block, p);
    const float score_threshold = *p.score_threshold;
    const Logit* logits = static_cast<const Logit*>(p.class_logits.data) +
                          (rows.first_of_item + rows.first) * static_cast<size_t>(p.num_classes);
    block.each_thread([&](uint32_t thread) {
        const uint32_t row = thread / threads_a_row;
        if (thread == 0) shared.found.num_keys = 0;
        if (thread % threads_a_row == 0) shared.best[row] = 0;
        if (row >= rows.count) return;
        const Logit* row_logits = logits + static_cast<size_t>(row) * p.num_classes;
        float maximum = -positive_infinity();
        for (uint32_t i = thread % threads_a_row; i < p.num_classes; i += threads_a_row) {
            const float logit = to_float(row_logits[i]);
            maximum = is_finite(logit) ? larger(maximum, logit) : positive_infinity();
            if (!is_finite(logit)) break;
        }
        shared.maxima[thread] = maximum;
    });
    block.each_thread([&](uint32_t thread) {
        const uint32_t row = thread / threads_a_row;
        if (row >= rows.count) return;
        const Logit* row_logits = logits + static_cast<size_t>(row) * p.num_classes;
        const float maximum = maximum_of(shared.maxima + row * threads_a_row);
        float sum = 0.0f;
        for (uint32_t i = thread % threads_a_row; i < p.num_classes; i += threads_a_row) {
            sum += exponential(to_float(row_logits[i]) - maximum);
        }
        shared.sums[thread] = sum;
    });
    constexpr uint32_t classes_a_pass = kLogitsAPass / kSoftmaxRowsABlock;
    for (uint32_t begin = 0; begin < p.num_classes; begin += classes_a_pass) {
        const uint32_t end = p.num_classes - begin < classes_a_pass ? p.num_classes : begin + classes_a_pass;
        block.each_thread([&](uint32_t thread) {
            const uint32_t row = thread / threads_a_row;
            if (row >= rows.count) return;
            const Logit* row_logits = logits + static_cast<size_t>(row) * p.num_classes;
            const float maximum = maximum_of(shared.maxima + row * threads_a_row);
            const float factor = factor_of(p, rows.first_of_item + rows.first + row);
            if (maximum == positive_infinity() || factor != factor) return;
            const float sum = sum_of(shared.sums + row * threads_a_row);
            for (uint32_t i = begin + thread % threads_a_row; i < end; i += threads_a_row) {
                const float probability = exponential(to_float(row_logits[i]) - maximum) / sum;
                note_score(block, p, shared.found, shared.best[row], rows.first + row, i,
                           combined(p.score_combination, probability, factor), score_threshold);
            }
        });
        if (p.multi_label) write_found(block, p, shared.found);
    }
    if (!p.multi_label) write_best(block, p, rows, shared.best, shared.found);
}

}  // namespace cuda
}  // namespace boxwright

#endif
