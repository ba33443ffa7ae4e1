// The first half of DecodeNMS: which pairs of anchor and class score above the threshold.
#ifndef BOXWRIGHT_CANDIDATES_H
#define BOXWRIGHT_CANDIDATES_H

#include <cstdint>
#include <vector>

#include "decode_nms.h"
#include "vector_kernels.h"

namespace boxwright {

// A candidate as one number, whose ascending order is the rank: score descending, then class, then anchor.
// Scores are positive, so that their bits are ordered as they are.
inline uint64_t candidate_key(float score, uint32_t pair) {
    return (static_cast<uint64_t>(~float_bits(score)) << 32) | pair;
}
inline float score_of(uint64_t key) { return float_of_bits(~static_cast<uint32_t>(key >> 32)); }
inline uint32_t pair_of(uint64_t key) { return static_cast<uint32_t>(key); }  // class * num_anchors + anchor

// The heads of one image; the meaning of the members is that of DecodeNmsInputs.
struct ScoreHeads {
    int64_t num_anchors;
    int64_t num_classes;
    const float* class_logits;
    int64_t class_anchor_stride;
    int64_t class_number_stride;
    const float* objectness;  // null where scores are not combined
    int64_t objectness_anchor_stride;
};

struct CandidateBuffers {
    std::vector<uint64_t> keys;  // the result, in no order
    // Of the anchors of a block that are worth looking at:
    std::vector<uint32_t> anchors;
    std::vector<float> factors, raw_thresholds;
    // Of all anchors of a block:
    std::vector<float> objectness, block_factors, block_thresholds;
    std::vector<uint8_t> has_hit;
    // Of a few rows:
    std::vector<float> rows, scores;
    std::vector<uint32_t> positions, row_positions;
};

// Fills `buffers.keys` with the candidates of one image, before any top-k.
void collect_candidates(const ScoreHeads& heads, const DecodeNmsAttributes& attributes, float score_threshold,
                        const VectorKernels& kernels, CandidateBuffers& buffers);

}  // namespace boxwright

#endif
