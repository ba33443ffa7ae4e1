#include "candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace boxwright {

namespace {

constexpr size_t kAnchorsABlock = 1024;
constexpr size_t kLogitsABlock = 8192;
constexpr size_t kSpare = 16;  // places beyond the end that select_above may write
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

class Collector {
   public:
    Collector(const ScoreHeads& heads, const DecodeNmsAttributes& attributes, float score_threshold,
              const VectorKernels& kernels, CandidateBuffers& buffers)
        : heads_(heads),
          attributes_(attributes),
          threshold_(score_threshold),
          product_threshold_(attributes.score_combination == Combination::sqrt
                                 ? static_cast<double>(score_threshold) * score_threshold
                                 : score_threshold),
          kernels_(kernels),
          buffers_(buffers),
          num_classes_(static_cast<size_t>(heads.num_classes)),
          background_(static_cast<size_t>(attributes.background_class)) {
        buffers.keys.clear();
        buffers.row_positions.resize(num_classes_ + kSpare);
        buffers.row.resize(num_classes_);
    }

    void run() {
        if (attributes_.score_combination != Combination::none) {
            collect_by_objectness();
        } else if (attributes_.score_activation == Activation::softmax) {
            const float margin = logit_below(threshold_);
            for (int64_t anchor = 0; anchor < heads_.num_anchors; ++anchor) collect_softmax_row(anchor, 1.0f, margin);
        } else {
            collect_by_class();
        }
        flush();
    }

   private:
    const float* row_of(int64_t anchor) const { return heads_.class_logits + anchor * heads_.class_anchor_stride; }

    uint32_t pair(int64_t anchor, size_t class_index) const {
        return static_cast<uint32_t>(static_cast<int64_t>(class_index) * heads_.num_anchors + anchor);
    }

    // ---- without objectness: all logits have the same threshold ----

    void collect_by_class() {
        const bool sigmoid_scores = attributes_.score_activation == Activation::sigmoid;
        const float raw_threshold = sigmoid_scores ? logit_below(threshold_) : threshold_;
        const int64_t row_length = heads_.num_classes;
        if (heads_.class_anchor_stride == row_length) {
            const int64_t total = heads_.num_anchors * row_length;
            for (int64_t begin = 0; begin < total; begin += kLogitsABlock) {
                select_in_rows(begin, std::min<int64_t>(total - begin, kLogitsABlock), raw_threshold);
            }
        } else {
            for (int64_t anchor = 0; anchor < heads_.num_anchors; ++anchor) collect_row(anchor, 1.0f, raw_threshold);
        }
    }

    // Rows that lie side by side are scanned as one long row, from logit `begin` on.
    void select_in_rows(int64_t begin, int64_t count, float raw_threshold) {
        buffers_.positions.resize(kLogitsABlock + kSpare);
        uint32_t* positions = buffers_.positions.data();
        const float* logits = heads_.class_logits + begin;
        const size_t selected = kernels_.select_above(logits, static_cast<size_t>(count), raw_threshold, positions);
        int64_t row_begin = 0, row_end = 0, anchor = -1;  // of the last selected logit
        for (size_t i = 0; i < selected; ++i) {
            const int64_t position = begin + positions[i];
            if (position >= row_end) {
                anchor = position / heads_.num_classes;
                row_begin = anchor * heads_.num_classes;
                row_end = row_begin + heads_.num_classes;
                // A block may end within a row, whose best class was then found already.
                if (!attributes_.multi_label && anchor != last_anchor_) {
                    last_anchor_ = anchor;
                    if (num_classes_ == 1) {
                        add_unless_background(logits[positions[i]], 1.0f, anchor, 0);
                    } else {
                        collect_best_of_row(anchor, 1.0f, raw_threshold);
                    }
                }
            }
            if (attributes_.multi_label) {
                add_unless_background(logits[positions[i]], 1.0f, anchor, static_cast<size_t>(position - row_begin));
            }
        }
    }

    // ---- with objectness: each anchor has its own threshold ----

    void collect_by_objectness() {
        buffers_.objectness.resize(kAnchorsABlock);
        buffers_.positions.resize(kAnchorsABlock + kSpare);
        buffers_.factors.resize(kAnchorsABlock);
        const float raw_threshold = objectness_threshold();
        for (int64_t begin = 0; begin < heads_.num_anchors; begin += kAnchorsABlock) {
            const size_t count = static_cast<size_t>(std::min<int64_t>(heads_.num_anchors - begin, kAnchorsABlock));
            const size_t selected = select_anchors(begin, count, raw_threshold);
            for (size_t i = 0; i < selected; ++i) {
                collect_with_factor(begin + buffers_.positions[i], buffers_.factors[i]);
            }
        }
    }

    // Raw objectness at or below which no class can reach the threshold: activated class scores are at most 1, if they
    // are activated.
    float objectness_threshold() const {
        if (attributes_.score_activation == Activation::none) return -kInfinity;
        if (attributes_.objectness_activation == Activation::sigmoid) return logit_below(product_threshold_);
        return static_cast<float>(product_threshold_ * (1.0 - kSlack));
    }

    // Positions and activated objectness of the anchors worth looking at.
    size_t select_anchors(int64_t begin, size_t count, float raw_threshold) {
        const float* objectness = heads_.objectness + begin * heads_.objectness_anchor_stride;
        if (heads_.objectness_anchor_stride != 1) {
            for (size_t i = 0; i < count; ++i) {
                buffers_.objectness[i] = objectness[static_cast<int64_t>(i) * heads_.objectness_anchor_stride];
            }
            objectness = buffers_.objectness.data();
        }
        const size_t selected = kernels_.select_above(objectness, count, raw_threshold, buffers_.positions.data());
        for (size_t i = 0; i < selected; ++i) buffers_.factors[i] = objectness[buffers_.positions[i]];
        if (attributes_.objectness_activation == Activation::sigmoid) {
            kernels_.apply_sigmoid(buffers_.factors.data(), selected);
        }
        return selected;
    }

    void collect_with_factor(int64_t anchor, float factor) {
        switch (attributes_.score_activation) {
            case Activation::softmax:
                collect_softmax_row(anchor, factor, logit_below(product_threshold_ / factor));
                return;
            case Activation::sigmoid:
                if (factor > 0.0f) collect_row(anchor, factor, logit_below(product_threshold_ / factor));
                return;
            case Activation::none: collect_plain_row(anchor, factor); return;
        }
    }

    // Scores that are no probabilities may be negative, as may be the factor, and their product may overflow.
    void collect_plain_row(int64_t anchor, float factor) {
        const float* logits = row_of(anchor);
        if (factor > 0.0f) {
            const float maximum = kernels_.max_finite(logits, num_classes_);
            if (!(maximum * factor > 0.0f)) return;
            if (is_finite(maximum * factor)) {
                const double raw_threshold = product_threshold_ / static_cast<double>(factor) * (1.0 - kSlack);
                collect_row(anchor, factor, static_cast<float>(std::fmin(raw_threshold, kMaxFinite)));
                return;
            }
        }
        for (size_t i = 0; i < num_classes_; ++i) {
            buffers_.row[i] = is_finite(logits[i]) ? combined(logits[i], factor) : -kInfinity;
        }
        collect_scores_of_row(anchor);
    }

    // ---- one row ----

    // The candidates of a row whose scores rise with the logits.
    void collect_row(int64_t anchor, float factor, float raw_threshold) {
        if (!attributes_.multi_label) {
            collect_best_of_row(anchor, factor, raw_threshold);
            return;
        }
        const float* logits = row_of(anchor);
        uint32_t* positions = buffers_.row_positions.data();
        const size_t selected = kernels_.select_above(logits, num_classes_, raw_threshold, positions);
        for (size_t i = 0; i < selected; ++i) add_unless_background(logits[positions[i]], factor, anchor, positions[i]);
    }

    void collect_best_of_row(int64_t anchor, float factor, float raw_threshold) {
        const float* logits = row_of(anchor);
        const float maximum = largest_logit(logits);
        if (!(maximum > raw_threshold)) return;
        // Different logits may have equal scores, of which the lowest class is the best: all logits near enough to the
        // largest are compared by score.
        uint32_t* positions = buffers_.row_positions.data();
        const float limit = near_tie_limit(maximum);
        const size_t selected = kernels_.select_above(logits, num_classes_, limit, positions);
        size_t best = num_classes_;
        float best_score = -kInfinity;
        for (size_t i = 0; i < selected; ++i) {
            if (positions[i] == background_) continue;
            if (best == num_classes_) {
                best = positions[i];
                continue;
            }
            if (best_score == -kInfinity) best_score = score(logits[best], factor);
            const float other_score = score(logits[positions[i]], factor);
            if (other_score > best_score) {
                best = positions[i];
                best_score = other_score;
            }
        }
        if (best < num_classes_) add(logits[best], factor, anchor, best);
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
        if (attributes_.score_activation == Activation::sigmoid) return smaller(maximum, 8.0f) - 0.02f;
        return maximum - absolute(maximum) * 1e-6f - std::numeric_limits<float>::min();
    }

    // No class scores more than its softmax against the background alone, the sigmoid of their difference: below
    // `margin` nothing needs to be activated.
    void collect_softmax_row(int64_t anchor, float factor, float margin) {
        const float* logits = row_of(anchor);
        if (background_ < num_classes_ && largest_logit(logits) - logits[background_] <= margin) return;
        float* scores = buffers_.row.data();
        if (!kernels_.softmax(logits, num_classes_, scores)) return;
        if (attributes_.score_combination != Combination::none) {
            for (size_t i = 0; i < num_classes_; ++i) scores[i] = combined(scores[i], factor);
        }
        collect_scores_of_row(anchor);
    }

    // The candidates among the finished scores in `buffers_.row`.
    void collect_scores_of_row(int64_t anchor) {
        const float* scores = buffers_.row.data();
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

    float combined(float class_score, float factor) const {
        switch (attributes_.score_combination) {
            case Combination::none: break;
            case Combination::multiply: return class_score * factor;
            case Combination::sqrt: return square_root(class_score * factor);
        }
        return class_score;
    }

    float score(float logit, float factor) const {
        return combined(attributes_.score_activation == Activation::sigmoid ? sigmoid(logit) : logit, factor);
    }

    void add_unless_background(float logit, float factor, int64_t anchor, size_t class_index) {
        if (class_index != background_) add(logit, factor, anchor, class_index);
    }

    // Puts a pair aside, to be activated together with others.
    void add(float logit, float factor, int64_t anchor, size_t class_index) {
        if (num_pending_ == kPending) flush();
        pending_logits_[num_pending_] = logit;
        pending_factors_[num_pending_] = factor;
        pending_pairs_[num_pending_] = pair(anchor, class_index);
        ++num_pending_;
    }

    void flush() {
        if (attributes_.score_activation == Activation::sigmoid) kernels_.apply_sigmoid(pending_logits_, num_pending_);
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
    const float threshold_;
    const double product_threshold_;  // of class score times objectness
    const VectorKernels& kernels_;
    CandidateBuffers& buffers_;
    const size_t num_classes_;
    const size_t background_;  // beyond all classes where there is none
    int64_t last_anchor_ = -1;
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
