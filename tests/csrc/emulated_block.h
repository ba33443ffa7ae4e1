// The CUDA kernels of DecodeNMS on the CPU: each phase of a block is a loop over its threads, in an order of one's
// choice, and blocks run one after another, the last first if one likes. A step that needs threads or blocks to come in
// some order gives different results in different orders.
#ifndef BOXWRIGHT_TESTS_EMULATED_BLOCK_H
#define BOXWRIGHT_TESTS_EMULATED_BLOCK_H

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/rank_and_keep.h"
#include "cuda/scan.h"

namespace boxwright {
namespace cuda {

enum class ThreadOrder : int32_t { forward, backward, shuffled };

class EmulatedBlock {
   public:
    EmulatedBlock(uint32_t index, uint32_t item, uint32_t num_threads, ThreadOrder order)
        : index_(index), item_(item), order_(order), random_(index + 1), threads_(num_threads) {
        std::iota(threads_.begin(), threads_.end(), 0u);
        if (order == ThreadOrder::backward) std::reverse(threads_.begin(), threads_.end());
    }

    uint32_t index() const { return index_; }
    uint32_t item() const { return item_; }

    template <typename Phase>
    void each_thread(Phase phase) {
        // The next order is a rotation, which costs less than a shuffle.
        if (order_ == ThreadOrder::shuffled) {
            if (num_phases_++ % 16 == 0) std::shuffle(threads_.begin(), threads_.end(), random_);
            std::rotate(threads_.begin(), threads_.begin() + static_cast<long>(random_() % threads_.size()), threads_.end());
        }
        for (const uint32_t thread : threads_) phase(thread);
    }

    // A warp is through with the whole body before the next begins.
    template <typename Body>
    void each_warp(Body body) {
        const uint32_t num_warps = static_cast<uint32_t>(threads_.size()) / kWarp;
        for (uint32_t i = 0; i < num_warps; ++i) body(order_ == ThreadOrder::forward ? i : num_warps - 1 - i);
    }
    template <typename Phase>
    void each_lane(uint32_t warp, Phase phase) {
        for (uint32_t i = 0; i < kWarp; ++i) {
            const uint32_t lane = order_ == ThreadOrder::forward ? i : order_ == ThreadOrder::backward ? 31 - i : i ^ 21;
            phase(warp * kWarp + lane);
        }
    }

    uint32_t next_place(uint32_t& counter) { return counter++; }

    uint32_t add(uint32_t& value, uint32_t summand) {
        const uint32_t before = value;
        value += summand;
        return before;
    }

    void set_to_larger(uint64_t& value, uint64_t other) { value = value < other ? other : value; }
    void set_bits(uint32_t& value, uint32_t bits) { value |= bits; }
    uint32_t num_bits(uint64_t bits) const { return static_cast<uint32_t>(__builtin_popcountll(bits)); }
    uint32_t lowest_bit(uint64_t bits) const { return static_cast<uint32_t>(__builtin_ctzll(bits)); }

   private:
    uint32_t index_;
    uint32_t item_;
    ThreadOrder order_;
    std::mt19937 random_;
    uint32_t num_phases_ = 0;
    std::vector<uint32_t> threads_;
};

// Shared memory as a block finds it: anything.
template <typename Shared>
std::unique_ptr<Shared> shared_memory() {
    std::unique_ptr<Shared> shared(new Shared);
    std::memset(static_cast<void*>(shared.get()), 0xA5, sizeof(Shared));
    return shared;
}

template <typename Logit>
void emulate_scan(const Parameters& parameters, uint32_t index, uint32_t item, ThreadOrder order) {
    EmulatedBlock block(index, item, kScanThreads, order);
    if (parameters.score_activation == Activation::softmax) {
        scan_softmax<Logit>(block, parameters, *shared_memory<SoftmaxShared>());
    } else {
        scan<Logit>(block, parameters, *shared_memory<ScanShared>());
    }
}

// What decode_nms_cuda_enqueue does; all pointers are to the CPU's memory.
inline void emulate_decode_nms(const DecodeNmsAttributes& attributes, const DecodeNmsCudaInputs& inputs,
                               const DecodeNmsOutputs& outputs, void* workspace, ThreadOrder order) {
    const Parameters parameters = make_parameters(attributes, inputs, outputs, workspace);
    const uint32_t num_blocks = num_scan_blocks(parameters), batch_size = static_cast<uint32_t>(inputs.batch_size);
    std::memset(parameters.num_candidates, 0, batch_size * sizeof(uint32_t));
    for (uint32_t item = 0; item < batch_size; ++item) {
        for (uint32_t i = 0; i < num_blocks; ++i) {
            const uint32_t index = order == ThreadOrder::forward ? i : num_blocks - 1 - i;
            if (inputs.class_logits.type == HeadType::float32) {
                emulate_scan<float>(parameters, index, item, order);
            } else {
                emulate_scan<Half>(parameters, index, item, order);
            }
        }
        EmulatedBlock block(0, item, kRankThreads, order);
        rank_and_keep(block, parameters, *shared_memory<RankShared>());
    }
}

}  // namespace cuda
}  // namespace boxwright

#endif
