#include "ranking.h"

#include <algorithm>

namespace boxwright {

namespace {

#if defined(BOXWRIGHT_SMALL_BLOCKS)  // for the fuzzers, whose inputs are small
constexpr size_t kFewKeys = 8;
constexpr size_t kNumBuckets = 8;
#else
constexpr size_t kFewKeys = 256;  // sorted at once
constexpr size_t kNumBuckets = 2048;
#endif

}  // namespace

Ranking::Ranking(std::vector<uint64_t>& keys, RankingBuffers& buffers) {
    if (keys.size() > kFewKeys) {
        spread(keys, buffers);
        return;
    }
    std::sort(keys.begin(), keys.end());
    ranked_ = keys.data();
    sorted_end_ = keys.size();
}

// A counting sort on the leading bits in which the keys differ.
void Ranking::spread(const std::vector<uint64_t>& keys, RankingBuffers& buffers) {
    uint64_t lowest = keys.front(), highest = keys.front();
    for (const uint64_t key : keys) {
        lowest = std::min(lowest, key);
        highest = std::max(highest, key);
    }
    int shift = 0;
    while (((highest - lowest) >> shift) >= kNumBuckets) ++shift;

    buffers.bucket_ends.assign(kNumBuckets, 0);
    for (const uint64_t key : keys) ++buffers.bucket_ends[(key - lowest) >> shift];
    uint32_t begin = 0;
    for (uint32_t& entry : buffers.bucket_ends) {
        const uint32_t count = entry;
        entry = begin;
        begin += count;
    }
    buffers.keys.resize(keys.size());
    // Each entry moves from the beginning of its bucket to its end.
    for (const uint64_t key : keys) buffers.keys[buffers.bucket_ends[(key - lowest) >> shift]++] = key;

    ranked_ = buffers.keys.data();
    bucket_ends_ = buffers.bucket_ends.data();
    num_buckets_ = kNumBuckets;
}

bool Ranking::sort_next_bucket() {
    for (; next_bucket_ < num_buckets_; ++next_bucket_) {
        const size_t end = bucket_ends_[next_bucket_];
        if (end == sorted_end_) continue;
        std::sort(ranked_ + sorted_end_, ranked_ + end);
        sorted_end_ = end;
        ++next_bucket_;
        return true;
    }
    return false;
}

}  // namespace boxwright
