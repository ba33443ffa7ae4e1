// The boxes that NMS has kept, arranged so that a new one is compared with sixteen at a time.
#ifndef BOXWRIGHT_SUPPRESSION_H
#define BOXWRIGHT_SUPPRESSION_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vector_kernels.h"

namespace boxwright {

// Each class has a chain of blocks; without classes (agnostic) all boxes are in chain 0.
class KeptBoxes {
   public:
    // Empties the chains; blocks and heads keep their memory.
    void clear(size_t num_chains) {
        blocks_.clear();
        heads_.assign(num_chains, -1);
        num_in_head_.resize(num_chains);
    }

    bool suppresses(const VectorKernels& kernels, size_t chain, const Box& box, float area, float threshold,
                    Overlap overlap) const {
        return heads_[chain] >= 0 &&
               kernels.is_suppressed(blocks_.data(), heads_[chain], box, area, threshold, overlap);
    }

    void add(size_t chain, const Box& box, float area) {
        if (heads_[chain] < 0 || num_in_head_[chain] == kBlockSize) {
            BoxBlock block = {};
            block.next = heads_[chain];
            heads_[chain] = static_cast<int32_t>(blocks_.size());
            num_in_head_[chain] = 0;
            blocks_.push_back(block);
        }
        BoxBlock& block = blocks_[static_cast<size_t>(heads_[chain])];
        const int place = num_in_head_[chain]++;
        block.x1[place] = box.x1;
        block.y1[place] = box.y1;
        block.x2[place] = box.x2;
        block.y2[place] = box.y2;
        block.area[place] = area;
    }

   private:
    std::vector<BoxBlock> blocks_;
    std::vector<int32_t> heads_;       // the newest block of each chain, -1 for none
    std::vector<int32_t> num_in_head_;  // boxes in it
};

}  // namespace boxwright

#endif
