#include "candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace boxwright {

namespace {

#if defined(BOXWRIGHT_SMALL_BLOCKS)  // for the fuzzers, whose inputs are small
constexpr size_t kAnchorsABlock = 20;
constexpr size_t kLogitsABlock = 32;
constexpr size_t kRowsGathered = 4;
#else
constexpr size_t kAnchorsABlock = 4096;
constexpr size_t kLogitsABlock = 8192;
constexpr size_t kRowsGathered = 64;
#endif
constexpr size_t kFewAnchors = 8;  // one anchor of so many is cheaper to gather than to scan all
constexpr size_t kManyHits = 16;  // in a row, from which on vectors find the best of them faster
constexpr size_t kSpare = 16;     // places beyond the end that select_above may write
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Raw thresholds are lowered by this much, so that rounding cannot lose a candidate; what they let through is compared
// again after activation. A float sigmoid, product or square root here is exact within 5e-7.
constexpr double kSlack = 8e-6;

// The logit whose sigmoid is `probability`, rounded down a little.
float logit_below(double probability) {
    const double lowered = probability * (1.0 - kSlack);
    if (lowered >= 1.0) return kInfinity;
    if (!(lowered > 0.0)) return -kInfinity;
    return static_cast<float>(std::log(lowered / (1.0 - lowered)) - 1e-5);
}

// The logits of one anchor. Its objectness is a factor of its scores (1 without). `raw_threshold` is, a little less
// than exactly, what a logit must be above: with softmax, by how much it must exceed that of the background.
struct Row {
    const float* logits;
    int64_t anchor;
    float factor;
    float raw_threshold;
};

class Collector {
   public:
    Collector(const ScoreHeads& heads, const DecodeNmsAttributes& attributes, float score_threshold,
              const VectorKernels& kernels, CandidateBuffers& buffers)
        : heads_(heads),
          attributes_(attributes),
          activation_(attributes.score_activation),
          combination_(attributes.score_combination),
          threshold_(score_threshold),
          product_threshold_(combination_ == Combination::sqrt ? static_cast<double>(score_threshold) * score_threshold
                                                               : score_threshold),
          kernels_(kernels),
          buffers_(buffers),
          num_classes_(static_cast<size_t>(heads.num_classes)),
          background_(static_cast<size_t>(attributes.background_class)) {
        buffers.keys.clear();
        buffers.positions.resize(std::max({kLogitsABlock, kAnchorsABlock, num_classes_}) + kSpare);
        buffers.row_positions.resize(num_classes_ + kSpare);
        buffers.scores.resize(num_classes_);
        buffers.anchors.resize(kAnchorsABlock);
        buffers.has_hit.resize(kAnchorsABlock);
        for (auto* floats : {&buffers.factors, &buffers.raw_thresholds, &buffers.objectness, &buffers.block_factors,
                             &buffers.block_thresholds}) {
            floats->resize(kAnchorsABlock);
        }
    }

    void run() {
        const bool is_combined = combination_ != Combination::none;
        if (!is_combined && activation_ != Activation::softmax && has_one_long_row()) {
            collect_from_long_row();
        } else {
            if (is_combined) objectness_threshold_ = objectness_threshold();
            for (int64_t begin = 0; begin < heads_.num_anchors; begin += kAnchorsABlock) {
                const int64_t left = heads_.num_anchors - begin;
                const size_t count = std::min(static_cast<size_t>(left), kAnchorsABlock);
                const size_t noted = is_combined ? note_by_objectness(begin, count) : note_all(begin, count);
                collect_block(begin, count, noted);
            }
        }
        flush();
    }

   private:
    // ---- one long row: rows side by side, without objectness, have one threshold and are scanned as one ----

    void collect_from_long_row() {
        const float raw_threshold = common_raw_threshold();
        const int64_t rows_a_block = static_cast<int64_t>(std::max<size_t>(kLogitsABlock / num_classes_, 1));
        for (int64_t begin = 0; begin < heads_.num_anchors; begin += rows_a_block) {
            const int64_t num_rows = std::min(heads_.num_anchors - begin, rows_a_block);
            const float* logits = heads_.class_logits + begin * heads_.num_classes;
            const size_t selected = kernels_.select_above(logits, static_cast<size_t>(num_rows) * num_classes_,
                                                          raw_threshold, buffers_.positions.data());
            collect_selected({logits, begin, 1.0f, raw_threshold}, selected);
        }
    }

    // Hits of neighbouring rows, of which `row` is the first.
    void collect_selected(Row row, size_t selected) {
        uint32_t* positions = buffers_.positions.data();
        const uint32_t row_length = static_cast<uint32_t>(num_classes_);
        for (size_t i = 0, end = 0; i < selected; i = end) {
            const uint32_t rows_skipped = positions[i] / row_length, row_begin = rows_skipped * row_length;
            for (end = i; end < selected && positions[end] - row_begin < row_length; ++end) positions[end] -= row_begin;
            collect_hits({row.logits + row_begin, row.anchor + rows_skipped, row.factor, row.raw_threshold},
                         positions + i, end - i);
        }
    }

    // The threshold of all logits where there is no objectness.
    float common_raw_threshold() const {
        return activation_ == Activation::none ? threshold_ : logit_below(threshold_);
    }

    // ---- blocks of anchors: those worth looking at are noted, with their factors and thresholds ----

    size_t note_all(int64_t begin, size_t count) {
        const float raw_threshold = common_raw_threshold();
        for (size_t i = 0; i < count; ++i) {
            buffers_.anchors[i] = static_cast<uint32_t>(begin) + static_cast<uint32_t>(i);
            buffers_.factors[i] = 1.0f;
            buffers_.raw_thresholds[i] = raw_threshold;
        }
        return count;
    }

    size_t note_by_objectness(int64_t begin, size_t count) {
        const float* objectness = heads_.objectness + begin * heads_.objectness_anchor_stride;
        if (heads_.objectness_anchor_stride != 1) {
            for (size_t i = 0; i < count; ++i) {
                buffers_.objectness[i] = objectness[static_cast<int64_t>(i) * heads_.objectness_anchor_stride];
            }
            objectness = buffers_.objectness.data();
        }
        uint32_t* positions = buffers_.positions.data();
        const size_t noted = kernels_.select_above(objectness, count, objectness_threshold_, positions);
        float* factors = buffers_.factors.data();
        for (size_t i = 0; i < noted; ++i) {
            buffers_.anchors[i] = static_cast<uint32_t>(begin) + positions[i];
            factors[i] = objectness[positions[i]];
        }
        if (attributes_.objectness_activation == Activation::sigmoid) kernels_.apply_sigmoid(factors, noted);
        if (activation_ != Activation::none) {
            const float product_threshold = static_cast<float>(product_threshold_);
            kernels_.raw_thresholds(factors, noted, product_threshold, buffers_.raw_thresholds.data());
        }
        return noted;
    }

    // Objectness at or below which no class can reach the threshold.
    float objectness_threshold() {
        const bool is_plain = attributes_.objectness_activation == Activation::none;
        double product_threshold = product_threshold_;  // activated class scores are at most 1
        if (activation_ == Activation::none) {
            if (!has_one_long_row() || (is_plain && has_negative_objectness())) return -kInfinity;
            product_threshold /= bound_of_plain_scores();
        }
        if (!is_plain) return logit_below(product_threshold);
        return static_cast<float>(product_threshold * (1.0 - kSlack));
    }

    // Scores that are taken as they are should be probabilities; where they are not, the largest of them is the bound.
    double bound_of_plain_scores() {
        const size_t total = static_cast<size_t>(heads_.num_anchors) * num_classes_;
        for (size_t begin = 0; begin < total; begin += kLogitsABlock) {
            const size_t count = std::min(total - begin, kLogitsABlock);
            if (kernels_.select_above(heads_.class_logits + begin, count, 1.0f, buffers_.positions.data()) > 0) {
                return kernels_.max_finite(heads_.class_logits, total);
            }
        }
        return 1.0;
    }

    bool has_one_long_row() const {
        return heads_.class_number_stride == 1 && heads_.class_anchor_stride == heads_.num_classes;
    }

    bool has_negative_objectness() const {
        bool is_negative = false;
        for (int64_t i = 0; i < heads_.num_anchors; ++i) {
            is_negative |= heads_.objectness[i * heads_.objectness_anchor_stride] < 0.0f;
        }
        return is_negative;
    }

    void collect_block(int64_t begin, size_t count, size_t noted) {
        const bool has_columns = heads_.class_number_stride != 1 && heads_.class_anchor_stride == 1;
        if (has_columns && activation_ == Activation::sigmoid && noted * kFewAnchors > count) {
            noted = collect_columns(begin, count, noted);
        }
        collect_rows(noted);
    }

    // ---- columns: where each class has its anchors side by side, scanned class by class ----

    // Adds all candidates of the block; with one label, only notes the anchors that have any. Returns the number of
    // those that are left to be looked at.
    size_t collect_columns(int64_t begin, size_t count, size_t noted) {
        std::fill_n(buffers_.block_thresholds.begin(), count, kInfinity);
        for (size_t i = 0; i < noted; ++i) {
            const size_t position = buffers_.anchors[i] - static_cast<uint32_t>(begin);
            buffers_.block_thresholds[position] = buffers_.raw_thresholds[i];
            buffers_.block_factors[position] = buffers_.factors[i];
        }
        std::fill_n(buffers_.has_hit.begin(), count, uint8_t{0});
        for (size_t class_index = 0; class_index < num_classes_; ++class_index) {
            if (class_index != background_) collect_column(begin, count, class_index);
        }
        return attributes_.multi_label ? 0 : note_hits(begin, noted);
    }

    void collect_column(int64_t begin, size_t count, size_t class_index) {
        const float* logits =
            heads_.class_logits + static_cast<int64_t>(class_index) * heads_.class_number_stride + begin;
        const size_t selected = kernels_.select_above_each(logits, buffers_.block_thresholds.data(), count,
                                                           buffers_.positions.data());
        for (size_t i = 0; i < selected; ++i) {
            const uint32_t position = buffers_.positions[i];
            if (attributes_.multi_label) {
                add(logits[position], buffers_.block_factors[position], begin + position, class_index);
            } else {
                buffers_.has_hit[position] = 1;
            }
        }
    }

    // Leaves noted the anchors that have a hit.
    size_t note_hits(int64_t begin, size_t noted) {
        size_t hit = 0;
        for (size_t i = 0; i < noted; ++i) {
            buffers_.anchors[hit] = buffers_.anchors[i];
            buffers_.factors[hit] = buffers_.factors[i];
            buffers_.raw_thresholds[hit] = buffers_.raw_thresholds[i];
            hit += buffers_.has_hit[buffers_.anchors[i] - static_cast<uint32_t>(begin)];
        }
        return hit;
    }

    // ---- rows ----

    // Logits that do not lie side by side are brought together for a few rows at a time, class by class, so that
    // reading and writing both stay near.
    void collect_rows(size_t noted) {
        const bool has_rows = heads_.class_number_stride == 1;
        if (!has_rows) buffers_.rows.resize(kRowsGathered * num_classes_);
        for (size_t begin = 0; begin < noted; begin += kRowsGathered) {
            const size_t end = std::min(begin + kRowsGathered, noted);
            if (!has_rows) gather_rows(begin, end);
            for (size_t i = begin; i < end; ++i) {
                const int64_t anchor = buffers_.anchors[i];
                const float* logits = has_rows ? heads_.class_logits + anchor * heads_.class_anchor_stride
                                               : buffers_.rows.data() + (i - begin) * num_classes_;
                collect_row({logits, anchor, buffers_.factors[i], buffers_.raw_thresholds[i]});
            }
        }
    }

    void gather_rows(size_t begin, size_t end) {
        for (size_t class_index = 0; class_index < num_classes_; ++class_index) {
            const float* column = heads_.class_logits + static_cast<int64_t>(class_index) * heads_.class_number_stride;
            float* gathered = buffers_.rows.data() + class_index;
            for (size_t i = begin; i < end; ++i, gathered += num_classes_) {
                *gathered = column[buffers_.anchors[i] * heads_.class_anchor_stride];
            }
        }
    }

    void collect_row(const Row& row) {
        switch (activation_) {
            case Activation::softmax: collect_softmax_row(row); return;
            case Activation::sigmoid: collect_rising_row(row); return;
            case Activation::none: break;
        }
        if (combination_ == Combination::none) {
            collect_rising_row(row);
        } else {
            collect_plain_product_row(row);
        }
    }

    // A row whose scores rise with the logits.
    void collect_rising_row(const Row& row) {
        uint32_t* positions = buffers_.row_positions.data();
        collect_hits(row, positions, kernels_.select_above(row.logits, num_classes_, row.raw_threshold, positions));
    }

    // The candidates of a row, given its classes above the raw threshold.
    void collect_hits(const Row& row, const uint32_t* classes, size_t count) {
        if (attributes_.multi_label) {
            for (size_t i = 0; i < count; ++i) add(row, classes[i]);
        } else if (count > kManyHits) {
            collect_best_of_row(row);
        } else {
            collect_best_of_hits(row, classes, count);
        }
    }

    void collect_best_of_hits(const Row& row, const uint32_t* classes, size_t count) {
        size_t best = 0;
        float maximum = -kInfinity, second = -kInfinity;
        for (size_t i = 0; i < count; ++i) {
            const float logit = row.logits[classes[i]];
            if (classes[i] == background_) continue;
            if (logit > maximum) {
                second = maximum;
                maximum = logit;
                best = classes[i];
            } else {
                second = larger(second, logit);
            }
        }
        if (maximum == -kInfinity) return;
        if (second > near_tie_limit(maximum)) {
            collect_best_of_row(row);
        } else {
            add(row, best);
        }
    }

    // Different logits may have equal scores, of which the lowest class is the best: all logits near enough to the
    // largest are compared by score.
    void collect_best_of_row(const Row& row) {
        const float maximum = largest_logit(row.logits);
        if (!(maximum > row.raw_threshold)) return;
        uint32_t* positions = buffers_.row_positions.data();
        const size_t selected = kernels_.select_above(row.logits, num_classes_, near_tie_limit(maximum), positions);
        size_t best = num_classes_;
        float best_score = -kInfinity;
        for (size_t i = 0; i < selected; ++i) {
            if (positions[i] == background_) continue;
            if (best == num_classes_) {
                best = positions[i];
                continue;
            }
            if (best_score == -kInfinity) best_score = score(row.logits[best], row.factor);
            const float other_score = score(row.logits[positions[i]], row.factor);
            if (other_score > best_score) {
                best = positions[i];
                best_score = other_score;
            }
        }
        if (best < num_classes_) add(row, best);
    }

    // The largest finite logit of a row, the background apart.
    float largest_logit(const float* logits) const {
        const float before = kernels_.max_finite(logits, std::min(background_, num_classes_));
        if (background_ >= num_classes_) return before;
        const size_t after = background_ + 1;
        return larger(before, kernels_.max_finite(logits + after, num_classes_ - after));
    }

    // Logits at or below this score less than `maximum` by more than float32 can fail to tell: the slope of the
    // sigmoid at 8 still makes 0.02 a relative step of 6e-6.
    float near_tie_limit(float maximum) const {
        if (activation_ == Activation::sigmoid) return smaller(maximum, 8.0f) - 0.02f;
        return maximum - absolute(maximum) * 1e-6f - std::numeric_limits<float>::min();
    }

    // Scores that are no probabilities may be negative, as may be the factor, and their product may overflow.
    void collect_plain_product_row(Row row) {
        if (row.factor > 0.0f) {
            const float maximum = kernels_.max_finite(row.logits, num_classes_);
            if (!(maximum * row.factor > 0.0f)) return;
            if (is_finite(maximum * row.factor)) {
                const double raw_threshold = product_threshold_ / static_cast<double>(row.factor) * (1.0 - kSlack);
                row.raw_threshold = static_cast<float>(std::fmin(raw_threshold, kMaxFinite));
                collect_rising_row(row);
                return;
            }
        }
        for (size_t i = 0; i < num_classes_; ++i) {
            buffers_.scores[i] = is_finite(row.logits[i]) ? combined(row.logits[i], row.factor) : -kInfinity;
        }
        collect_scores(row.anchor);
    }

    // No class scores more than its softmax against the background alone, the sigmoid of their difference.
    void collect_softmax_row(const Row& row) {
        const bool has_background = background_ < num_classes_;
        if (has_background && largest_logit(row.logits) - row.logits[background_] <= row.raw_threshold) return;
        float* scores = buffers_.scores.data();
        if (!kernels_.softmax(row.logits, num_classes_, scores)) return;
        if (combination_ != Combination::none) {
            for (size_t i = 0; i < num_classes_; ++i) scores[i] = combined(scores[i], row.factor);
        }
        collect_scores(row.anchor);
    }

    // The candidates among the finished scores of a row, in `buffers_.scores`.
    void collect_scores(int64_t anchor) {
        const float* scores = buffers_.scores.data();
        size_t best = num_classes_;
        for (size_t i = 0; i < num_classes_; ++i) {
            if (i == background_ || !(scores[i] > threshold_) || !is_finite(scores[i])) continue;
            if (attributes_.multi_label) {
                buffers_.keys.push_back(candidate_key(scores[i], pair(anchor, i)));
            } else if (best == num_classes_ || scores[i] > scores[best]) {
                best = i;
            }
        }
        if (best < num_classes_) buffers_.keys.push_back(candidate_key(scores[best], pair(anchor, best)));
    }

    // ---- scores ----

    uint32_t pair(int64_t anchor, size_t class_index) const {
        return static_cast<uint32_t>(static_cast<int64_t>(class_index) * heads_.num_anchors + anchor);
    }

    float combined(float class_score, float factor) const {
        switch (combination_) {
            case Combination::none: break;
            case Combination::multiply: return class_score * factor;
            case Combination::sqrt: return square_root(class_score * factor);
        }
        return class_score;
    }

    float score(float logit, float factor) const {
        return combined(activation_ == Activation::sigmoid ? sigmoid(logit) : logit, factor);
    }

    void add(const Row& row, size_t class_index) { add(row.logits[class_index], row.factor, row.anchor, class_index); }

    // Puts a pair aside, to be activated together with others.
    void add(float logit, float factor, int64_t anchor, size_t class_index) {
        if (class_index == background_) return;
        if (num_pending_ == kPending) flush();
        pending_logits_[num_pending_] = logit;
        pending_factors_[num_pending_] = factor;
        pending_pairs_[num_pending_] = pair(anchor, class_index);
        ++num_pending_;
    }

    void flush() {
        if (activation_ == Activation::sigmoid) kernels_.apply_sigmoid(pending_logits_, num_pending_);
        for (size_t i = 0; i < num_pending_; ++i) {
            const float final_score = combined(pending_logits_[i], pending_factors_[i]);
            if (final_score > threshold_ && is_finite(final_score)) {
                buffers_.keys.push_back(candidate_key(final_score, pending_pairs_[i]));
            }
        }
        num_pending_ = 0;
    }

    static constexpr size_t kPending = 512;

    const ScoreHeads& heads_;
    const DecodeNmsAttributes& attributes_;
    const Activation activation_;
    const Combination combination_;
    const float threshold_;
    const double product_threshold_;  // of class score times objectness
    const VectorKernels& kernels_;
    CandidateBuffers& buffers_;
    const size_t num_classes_;
    const size_t background_;  // beyond all classes where there is none
    float objectness_threshold_ = -kInfinity;
    size_t num_pending_ = 0;
    float pending_logits_[kPending];
    float pending_factors_[kPending];
    uint32_t pending_pairs_[kPending];
};

}  // namespace

void collect_candidates(const ScoreHeads& heads, const DecodeNmsAttributes& attributes, float score_threshold,
                        const VectorKernels& kernels, CandidateBuffers& buffers) {
    Collector(heads, attributes, score_threshold, kernels, buffers).run();
}

}  // namespace boxwright
