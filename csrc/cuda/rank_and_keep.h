// The second half of DecodeNMS on a GPU: one block an image takes the candidates in rank order, decodes them, suppresses
// and writes what is left, until the outputs are full. See scan.h for what a step and a phase are.
//
// Candidates are taken a chunk at a time, the best first. NMS goes through a chunk in tiles: all threads compare the
// tile with the boxes kept before and with itself, then one thread goes through the bit masks of those that need it.
#ifndef BOXWRIGHT_CUDA_RANK_AND_KEEP_H
#define BOXWRIGHT_CUDA_RANK_AND_KEEP_H

#include "numbers.h"

namespace boxwright {
namespace cuda {

#if defined(BOXWRIGHT_SMALL_BLOCKS)  // for tests whose inputs are small
constexpr uint32_t kRankThreads = 128;
constexpr uint32_t kTile = 8;
#else
constexpr uint32_t kRankThreads = 1024;  // and as many candidates a chunk
constexpr uint32_t kTile = 64;
#endif
constexpr uint32_t kThreadsACandidate = kRankThreads / kTile;
constexpr uint32_t kWarp = 32;  // threads that a GPU runs together
static_assert(kTile <= 64, "the masks of a tile have 64 bits");

struct RankShared {
    uint64_t keys[kRankThreads];
    float corners[4][kRankThreads];  // x1, y1, x2, y2: side by side for neighbouring threads
    uint32_t classes[kRankThreads];
    uint32_t scopes[kRankThreads];
    uint8_t is_usable[kRankThreads];
    uint32_t counts[2][kRankThreads];
    uint32_t cut_bin;
    uint32_t num_below_cut;
    uint32_t num_gathered;
    // Of a tile, a bit for each place in words of 32, whose bits are set faster than those of 64:
    uint32_t suppressors[2][kTile];  // of the same tile
    uint32_t uncontested[2];         // kept for sure
    uint32_t contested[2];           // kept unless one of their suppressors is
    uint8_t is_alive[kTile];
    uint8_t is_suppressed[kTile];
    uint64_t kept;
    uint32_t first_kept;  // its place in the outputs
    uint32_t num_kept;    // of the image so far
};

// ---- the best of many keys ----

// Which keys come next: from `begin` on, up to but not including `end`.
struct KeyRange {
    uint64_t begin;
    uint64_t end;
};

// Calls `visit` with this thread's share of the keys, which are loaded a few at a time: each load takes long.
template <typename Visit>
BOXWRIGHT_DEVICE void visit_keys(const uint64_t* keys, uint32_t num_keys, uint32_t thread, Visit visit) {
    constexpr uint32_t at_once = 4;
    for (uint32_t first = thread; first < num_keys; first += at_once * kRankThreads) {
        uint64_t loaded[at_once];
        BOXWRIGHT_UNROLL for (uint32_t i = 0; i < at_once; ++i) {
            const uint32_t place = first + i * kRankThreads;
            loaded[i] = keys[place < num_keys ? place : first];
        }
        BOXWRIGHT_UNROLL for (uint32_t i = 0; i < at_once; ++i) {
            if (first + i * kRankThreads < num_keys) visit(loaded[i]);
        }
    }
}

// Turns counts into sums of all counts up to each; returns which of the two arrays holds them.
template <typename Block>
BOXWRIGHT_DEVICE uint32_t accumulate(Block& block, RankShared& shared) {
    uint32_t from = 0;
    for (uint32_t distance = 1; distance < kRankThreads; distance *= 2, from = 1 - from) {
        block.each_thread([&](uint32_t thread) {
            const uint32_t before = thread >= distance ? shared.counts[from][thread - distance] : 0;
            shared.counts[1 - from][thread] = shared.counts[from][thread] + before;
        });
    }
    return from;
}

// Narrows [lowest, highest], of whose keys there are more than `limit`, to the bin of neighbouring keys with which the
// limit is passed; shared.num_below_cut keys are below it.
template <typename Block>
BOXWRIGHT_DEVICE void narrow(Block& block, const uint64_t* keys, uint32_t num_keys, uint64_t& lowest, uint64_t& highest,
                             uint32_t limit, RankShared& shared) {
    uint32_t shift = 0;
    while (((highest - lowest) >> shift) >= kRankThreads) ++shift;
    const uint64_t from_key = lowest, to_key = highest;
    block.each_thread([&](uint32_t thread) { shared.counts[0][thread] = 0; });
    block.each_thread([&](uint32_t thread) {
        visit_keys(keys, num_keys, thread, [&](uint64_t key) {
            if (key >= from_key && key <= to_key) {
                block.add(shared.counts[0][static_cast<uint32_t>((key - from_key) >> shift)], 1u);
            }
        });
    });
    const uint32_t sums = accumulate(block, shared);
    block.each_thread([&](uint32_t thread) {
        const uint32_t below = thread == 0 ? 0 : shared.counts[sums][thread - 1];
        if (below > limit || shared.counts[sums][thread] <= limit) return;
        shared.cut_bin = thread;
        shared.num_below_cut = below;
    });
    lowest = from_key + (static_cast<uint64_t>(shared.cut_bin) << shift);
    const uint64_t width = (static_cast<uint64_t>(1) << shift) - 1;
    if (to_key - lowest > width) highest = lowest + width;
}

// The keys from `begin` on, of which there are `num_left`, or so many of the lowest of them that they make a chunk.
template <typename Block>
BOXWRIGHT_DEVICE KeyRange next_range(Block& block, const Parameters& p, const uint64_t* keys, uint32_t num_keys,
                                     uint64_t begin, uint32_t num_left, float score_threshold, RankShared& shared) {
    constexpr uint64_t beyond_all = 0xFFFFFFFFFFFFFFFFu;  // no key: its score would be -0
    if (num_left <= kRankThreads) return {begin, beyond_all};
    const float largest = p.has_scores_of_at_most_one ? 1.0f : kMaxFinite;
    uint64_t lowest = static_cast<uint64_t>(~float_bits(largest)) << 32;
    uint64_t highest = static_cast<uint64_t>(~float_bits(larger(score_threshold, 0.0f))) << 32 | 0xFFFFFFFFu;  // not -0
    if (lowest < begin) lowest = begin;
    uint32_t num_chosen = 0;
    while (num_chosen < kRankThreads / 2) {
        narrow(block, keys, num_keys, lowest, highest, kRankThreads - num_chosen, shared);
        num_chosen += shared.num_below_cut;
    }
    return {begin, lowest};
}

// ---- a chunk: gathered, sorted, decoded ----

template <typename Block>
BOXWRIGHT_DEVICE uint32_t gather(Block& block, const uint64_t* keys, uint32_t num_keys, KeyRange range,
                                 RankShared& shared) {
    block.each_thread([&](uint32_t thread) {
        if (thread == 0) shared.num_gathered = 0;
    });
    block.each_thread([&](uint32_t thread) {
        visit_keys(keys, num_keys, thread, [&](uint64_t key) {
            if (key >= range.begin && key < range.end) shared.keys[block.next_place(shared.num_gathered)] = key;
        });
    });
    return shared.num_gathered;
}

// The step of a bitonic sort that compares keys at this distance, in runs of this length that rise and fall in turn.
BOXWRIGHT_DEVICE void exchange(uint64_t* keys, uint32_t size, uint32_t length, uint32_t distance, uint32_t thread) {
    if (thread >= size / 2) return;
    const uint32_t low = 2 * thread - (thread & (distance - 1)), high = low + distance;
    const uint64_t a = keys[low], b = keys[high];
    const bool rises = (low & length) == 0;
    if ((a > b) == rises) {
        keys[low] = b;
        keys[high] = a;
    }
}

// Sorts `count` keys: a bitonic sort of a power of two of them, those beyond being higher than all others.
template <typename Block>
BOXWRIGHT_DEVICE void sort(Block& block, uint32_t count, RankShared& shared) {
    uint32_t size = 1;
    while (size < count) size *= 2;
    block.each_thread([&](uint32_t thread) {
        if (thread >= count && thread < size) shared.keys[thread] = 0xFFFFFFFFFFFFFFFFu;
    });
    for (uint32_t length = 2; length <= size; length *= 2) {
        uint32_t distance = length / 2;
        for (; distance > kWarp; distance /= 2) {
            block.each_thread([&](uint32_t thread) { exchange(shared.keys, size, length, distance, thread); });
        }
        // From here on the threads of a warp need nothing of those of another.
        block.each_warp([&](uint32_t warp) {
            for (uint32_t near = distance; near > 0; near /= 2) {
                block.each_lane(warp, [&](uint32_t thread) { exchange(shared.keys, size, length, near, thread); });
            }
        });
    }
}

BOXWRIGHT_DEVICE uint32_t level_of(const Parameters& p, uint32_t anchor) {
    uint32_t level = 0;
    while (anchor >= p.level_ends[level]) ++level;
    return level;
}

// False where the pair has no usable box.
BOXWRIGHT_DEVICE bool decode(const Parameters& p, uint32_t item, uint32_t anchor, uint32_t class_index, Box& box) {
    const size_t row = item * static_cast<size_t>(p.num_anchors) + anchor;
    const size_t first =
        p.class_specific_boxes ? 4 * (row * p.num_classes + class_index) : 4 * row;
    float raw[4], prior_numbers[4];
    for (uint32_t i = 0; i < 4; ++i) raw[i] = load(p.box_regression, first + i);
    const float* prior = nullptr;
    if (p.priors != nullptr) {
        const float* item_priors = p.priors + item * p.priors_batch_stride + 4 * static_cast<size_t>(anchor);
        for (uint32_t i = 0; i < 4; ++i) prior_numbers[i] = item_priors[i];
        prior = prior_numbers;
    }
    if (!are_finite(raw, prior)) return false;
    CodingParameters coding = p.coding;
    if (needs_stride(coding.coding)) {
        const uint32_t level = level_of(p, anchor);
        coding.stride = p.level_strides[level];
        coding.scale_xy = p.level_scale_xy[level];
    }
    box = decode_box(raw, prior, coding);
    if (!is_finite(box)) return false;
    if (p.clip_to_image) {
        box = clip_box(box, p.image_size_hw[2 * item], p.image_size_hw[2 * item + 1]);
        if (!is_finite(box)) return false;  // an image size that is no number
    }
    return !(p.min_size > 0.0f) || (box.x2 - box.x1 >= p.min_size && box.y2 - box.y1 >= p.min_size);
}

// Fills in what the threads need to know of the chunk's candidates.
template <typename Block>
BOXWRIGHT_DEVICE void decode_chunk(Block& block, const Parameters& p, uint32_t count, RankShared& shared) {
    block.each_thread([&](uint32_t thread) {
        if (thread >= count) return;
        const uint32_t pair = pair_of_key(shared.keys[thread]);
        const uint32_t class_index = pair / p.num_anchors, anchor = pair - class_index * p.num_anchors;
        Box box = {0.0f, 0.0f, 0.0f, 0.0f};
        shared.is_usable[thread] = decode(p, block.item(), anchor, class_index, box) ? 1 : 0;
        shared.corners[0][thread] = box.x1;
        shared.corners[1][thread] = box.y1;
        shared.corners[2][thread] = box.x2;
        shared.corners[3][thread] = box.y2;
        shared.classes[thread] = class_index;
        uint32_t scope = 0;
        if (p.top_k > 0 && p.top_k_scope == TopKScope::class_) scope = class_index;
        if (p.top_k > 0 && p.top_k_scope == TopKScope::level) scope = level_of(p, anchor);
        shared.scopes[thread] = scope;
    });
}

// ---- suppression, a tile at a time ----

BOXWRIGHT_DEVICE Box box_at(const RankShared& shared, uint32_t place) {
    return {shared.corners[0][place], shared.corners[1][place], shared.corners[2][place], shared.corners[3][place]};
}

BOXWRIGHT_DEVICE bool overlaps(const Box& kept, const Box& box, float area, float threshold, Overlap kind) {
    // Without an intersection no overlap is above 0, and thresholds are not below.
    if (!(smaller(kept.x2, box.x2) > larger(kept.x1, box.x1))) return false;
    if (!(smaller(kept.y2, box.y2) > larger(kept.y1, box.y1))) return false;
    const float kept_area = box_area(kept);
    return kept_area > 0.0f && overlap_of(kept, kept_area, box, area, kind) > threshold;
}

// Class ids are counted without the background.
BOXWRIGHT_DEVICE int32_t class_id_of(const Parameters& p, uint32_t class_index) {
    const bool is_after_background = p.background_class != kNoClass && class_index > p.background_class;
    return static_cast<int32_t>(class_index - (is_after_background ? 1 : 0));
}

// The places of an image in the outputs.
BOXWRIGHT_DEVICE DecodeNmsOutputs outputs_of(const Parameters& p, uint32_t item) {
    const size_t first = item * static_cast<size_t>(p.max_detections);
    return {p.outputs.num_detections + item, p.outputs.boxes + 4 * first, p.outputs.scores + first,
            p.outputs.class_ids + first};
}

// Whether a candidate is within the top-k of its scope; `rank` counts all candidates of the image.
template <typename Block>
BOXWRIGHT_DEVICE bool is_within_top_k(const Block& block, const Parameters& p, uint32_t first, uint32_t place,
                                      uint32_t rank, const RankShared& shared) {
    if (p.top_k == 0) return true;
    if (p.top_k_scope == TopKScope::image) return rank < p.top_k;
    const uint32_t scope = shared.scopes[first + place];
    uint32_t num_better = p.num_in_scope[block.item() * static_cast<size_t>(p.num_scopes) + scope];
    for (uint32_t i = 0; i < place; ++i) num_better += shared.scopes[first + i] == scope ? 1 : 0;
    return num_better < p.top_k;
}

// Compares a candidate of the tile with every so many of the boxes kept before, and of the better boxes of the tile.
template <typename Block>
BOXWRIGHT_DEVICE void compare(Block& block, const Parameters& p, const DecodeNmsOutputs& outputs, uint32_t first,
                              float iou_threshold, RankShared& shared, uint32_t thread) {
    const uint32_t place = thread / kThreadsACandidate, part = thread % kThreadsACandidate;
    if (!shared.is_alive[place]) return;
    const Box box = box_at(shared, first + place);
    const float area = box_area(box);
    if (!(area > 0.0f)) return;  // it overlaps nothing
    const uint32_t class_index = shared.classes[first + place];
    const int32_t class_id = class_id_of(p, class_index);
    for (uint32_t kept = part; kept < shared.num_kept; kept += kThreadsACandidate) {
        if (!p.class_agnostic && outputs.class_ids[kept] != class_id) continue;
        const float* corners = outputs.boxes + 4 * static_cast<size_t>(kept);
        if (overlaps({corners[0], corners[1], corners[2], corners[3]}, box, area, iou_threshold, p.overlap)) {
            shared.is_suppressed[place] = 1;
            return;
        }
    }
    uint64_t suppressors = 0;
    for (uint32_t better = part; better < place; better += kThreadsACandidate) {
        if (!shared.is_alive[better] || (!p.class_agnostic && shared.classes[first + better] != class_index)) continue;
        if (overlaps(box_at(shared, first + better), box, area, iou_threshold, p.overlap)) {
            suppressors |= static_cast<uint64_t>(1) << better;
        }
    }
    for (uint32_t word = 0; word < 2; ++word) {
        const uint32_t bits = static_cast<uint32_t>(suppressors >> 32 * word);
        if (bits != 0) block.set_bits(shared.suppressors[word][place], bits);
    }
}

BOXWRIGHT_DEVICE uint64_t joined(const uint32_t words[2]) { return words[0] | static_cast<uint64_t>(words[1]) << 32; }

// Goes through the tile's candidates in rank order, until the outputs are full.
template <typename Block>
BOXWRIGHT_DEVICE void choose(const Block& block, const Parameters& p, RankShared& shared) {
    uint64_t kept = joined(shared.uncontested);
    for (uint64_t left = joined(shared.contested); left != 0; left &= left - 1) {
        const uint32_t place = block.lowest_bit(left);
        const uint64_t suppressors =
            shared.suppressors[0][place] | static_cast<uint64_t>(shared.suppressors[1][place]) << 32;
        if ((suppressors & kept) == 0) kept |= static_cast<uint64_t>(1) << place;
    }
    const uint32_t room = p.max_detections - shared.num_kept;
    uint32_t num_kept = 0;
    uint64_t within = 0;
    if (block.num_bits(kept) <= room) {
        num_kept = block.num_bits(kept);
        within = kept;
    } else {
        for (uint64_t left = kept; num_kept < room; left &= left - 1, ++num_kept) {
            within |= static_cast<uint64_t>(1) << block.lowest_bit(left);
        }
    }
    shared.kept = within;
    shared.first_kept = shared.num_kept;
    shared.num_kept += num_kept;
}

template <typename Block>
BOXWRIGHT_DEVICE void write_detection(const Block& block, const Parameters& p, const DecodeNmsOutputs& outputs,
                                      uint32_t first, uint32_t place, const RankShared& shared) {
    if ((shared.kept >> place & 1) == 0) return;
    const uint64_t better = shared.kept & ((static_cast<uint64_t>(1) << place) - 1);
    const size_t to = shared.first_kept + block.num_bits(better), from = first + place;
    for (uint32_t i = 0; i < 4; ++i) outputs.boxes[4 * to + i] = shared.corners[i][from];
    outputs.scores[to] = score_of_key(shared.keys[from]);
    outputs.class_ids[to] = class_id_of(p, shared.classes[from]);
}

// `num_before` candidates of the image were in earlier tiles.
template <typename Block>
BOXWRIGHT_DEVICE void keep_of_tile(Block& block, const Parameters& p, const DecodeNmsOutputs& outputs, uint32_t first,
                                   uint32_t count, uint32_t num_before, float iou_threshold, RankShared& shared) {
    block.each_thread([&](uint32_t thread) {
        if (thread >= kTile) return;
        const bool is_alive = thread < count && shared.is_usable[first + thread] &&
                              is_within_top_k(block, p, first, thread, num_before + thread, shared);
        shared.is_alive[thread] = is_alive ? 1 : 0;
        shared.is_suppressed[thread] = 0;
        for (uint32_t word = 0; word < 2; ++word) shared.suppressors[word][thread] = 0;
        if (thread < 2) shared.uncontested[thread] = shared.contested[thread] = 0;
    });
    if (p.top_k > 0 && p.top_k_scope != TopKScope::image) {
        block.each_thread([&](uint32_t thread) {
            if (thread >= count) return;
            block.add(p.num_in_scope[block.item() * static_cast<size_t>(p.num_scopes) + shared.scopes[first + thread]],
                      1u);
        });
    }
    if (p.with_nms) {
        block.each_thread([&](uint32_t thread) { compare(block, p, outputs, first, iou_threshold, shared, thread); });
    }
    block.each_thread([&](uint32_t thread) {
        if (thread >= kTile || !shared.is_alive[thread] || shared.is_suppressed[thread]) return;
        const bool is_contested = (shared.suppressors[0][thread] | shared.suppressors[1][thread]) != 0;
        uint32_t* words = is_contested ? shared.contested : shared.uncontested;
        block.set_bits(words[thread / 32], 1u << thread % 32);
    });
    block.each_thread([&](uint32_t thread) {
        if (thread == 0) choose(block, p, shared);
    });
    block.each_thread([&](uint32_t thread) {
        if (thread < count) write_detection(block, p, outputs, first, thread, shared);
    });
}

// ---- an image ----

// Places beyond the detections; a count of -1 says that a threshold is none.
template <typename Block>
BOXWRIGHT_DEVICE void write_rest(Block& block, const Parameters& p, const DecodeNmsOutputs& outputs, int32_t count) {
    const uint32_t begin = count < 0 ? 0 : static_cast<uint32_t>(count);
    block.each_thread([&](uint32_t thread) {
        if (thread == 0) *outputs.num_detections = count;
        for (uint32_t i = begin + thread; i < p.max_detections; i += kRankThreads) {
            for (uint32_t k = 0; k < 4; ++k) outputs.boxes[4 * static_cast<size_t>(i) + k] = 0.0f;
            outputs.scores[i] = 0.0f;
            outputs.class_ids[i] = -1;
        }
    });
}

template <typename Block>
BOXWRIGHT_DEVICE void rank_and_keep(Block& block, const Parameters& p, RankShared& shared) {
    const DecodeNmsOutputs outputs = outputs_of(p, block.item());
    const float score_threshold = *p.score_threshold, iou_threshold = *p.iou_threshold;
    if (!is_threshold(score_threshold) || !is_threshold(iou_threshold)) {
        write_rest(block, p, outputs, -1);
        return;
    }
    const uint64_t* keys = p.keys + block.item() * p.keys_an_item;
    const uint32_t num_keys = p.num_candidates[block.item()];
    block.each_thread([&](uint32_t thread) {
        if (thread == 0) shared.num_kept = 0;
        for (uint32_t scope = thread; scope < p.num_scopes; scope += kRankThreads) {
            p.num_in_scope[block.item() * static_cast<size_t>(p.num_scopes) + scope] = 0;
        }
    });
    const bool has_limit = p.top_k > 0 && p.top_k_scope == TopKScope::image;
    const uint32_t num_ranked = has_limit && p.top_k < num_keys ? p.top_k : num_keys;
    uint64_t begin = 0;
    uint32_t num_done = 0;
    while (num_done < num_ranked && shared.num_kept < p.max_detections) {
        const KeyRange range =
            next_range(block, p, keys, num_keys, begin, num_keys - num_done, score_threshold, shared);
        const uint32_t count = gather(block, keys, num_keys, range, shared);
        sort(block, count, shared);
        decode_chunk(block, p, count, shared);
        for (uint32_t first = 0; first < count && shared.num_kept < p.max_detections; first += kTile) {
            const uint32_t tile_count = count - first < kTile ? count - first : kTile;
            keep_of_tile(block, p, outputs, first, tile_count, num_done + first, iou_threshold, shared);
        }
        begin = range.end;
        num_done += count;
    }
    write_rest(block, p, outputs, static_cast<int32_t>(shared.num_kept));
}

}  // namespace cuda
}  // namespace boxwright

#endif
