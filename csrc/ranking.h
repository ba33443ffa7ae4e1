// Candidates in rank order, sorted no further than they are asked for.
#ifndef BOXWRIGHT_RANKING_H
#define BOXWRIGHT_RANKING_H

#include <cstddef>
#include <cstdint>
#include <vector>

namespace boxwright {

struct RankingBuffers {
    std::vector<uint64_t> keys;
    std::vector<uint32_t> bucket_ends;
};

// NMS mostly stops after a few hundred of many thousand candidates. They are spread over buckets of neighbouring keys
// once, and a bucket is sorted when its turn comes.
class Ranking {
   public:
    // `keys` is reordered; both arguments must outlive the object.
    Ranking(std::vector<uint64_t>& keys, RankingBuffers& buffers);

    // The next key in ascending order; false at the end.
    bool next(uint64_t& key) {
        if (position_ == sorted_end_ && !sort_next_bucket()) return false;
        key = ranked_[position_++];
        return true;
    }

   private:
    void spread(const std::vector<uint64_t>& keys, RankingBuffers& buffers);
    bool sort_next_bucket();

    uint64_t* ranked_ = nullptr;
    const uint32_t* bucket_ends_ = nullptr;
    size_t num_buckets_ = 0;
    size_t next_bucket_ = 0;
    size_t position_ = 0;
    size_t sorted_end_ = 0;
};

}  // namespace boxwright

#endif
