// Runs the steps of cuda/scan.h and cuda/rank_and_keep.h on a GPU.
#include <cuda_runtime_api.h>

#include "cuda/rank_and_keep.h"
#include "cuda/scan.h"
#include "decode_nms_cuda.h"

namespace boxwright {
namespace cuda {

namespace {

// The threads of a CUDA block, as the steps see them.
class CudaBlock {
   public:
    __device__ uint32_t index() const { return blockIdx.x; }
    __device__ uint32_t item() const { return blockIdx.y; }

    template <typename Phase>
    __device__ __forceinline__ void each_thread(Phase phase) {
        phase(threadIdx.x);
        __syncthreads();
    }

    // As each_thread, for a body of which other warps need nothing before its end; each_lane is its phases.
    template <typename Body>
    __device__ __forceinline__ void each_warp(Body body) {
        body(threadIdx.x / kWarp);
        __syncthreads();
    }
    template <typename Phase>
    __device__ __forceinline__ void each_lane(uint32_t, Phase phase) {
        phase(threadIdx.x);
        __syncwarp();
    }

    // The counter's value before it is increased by one. Threads of a warp that come together add together.
    __device__ __forceinline__ uint32_t next_place(uint32_t& counter) {
        const uint32_t active = __activemask();
        const int first = __ffs(static_cast<int>(active)) - 1;
        uint32_t lower_lanes;
        asm("mov.u32 %0, %%lanemask_lt;" : "=r"(lower_lanes));
        const uint32_t lower = active & lower_lanes;
        uint32_t begin = 0;
        if (lower == 0) begin = atomicAdd(&counter, static_cast<uint32_t>(__popc(active)));
        return __shfl_sync(active, begin, first) + static_cast<uint32_t>(__popc(lower));
    }

    __device__ __forceinline__ uint32_t add(uint32_t& value, uint32_t summand) { return atomicAdd(&value, summand); }

    __device__ __forceinline__ void set_to_larger(uint64_t& value, uint64_t other) {
        atomicMax(reinterpret_cast<unsigned long long*>(&value), static_cast<unsigned long long>(other));
    }

    __device__ __forceinline__ void set_bits(uint32_t& value, uint32_t bits) { atomicOr(&value, bits); }

    __device__ __forceinline__ uint32_t num_bits(uint64_t bits) const { return static_cast<uint32_t>(__popcll(bits)); }

    __device__ __forceinline__ uint32_t lowest_bit(uint64_t bits) const {
        return static_cast<uint32_t>(__ffsll(static_cast<long long>(bits)) - 1);
    }
};

template <typename Logit>
__global__ void __launch_bounds__(kScanThreads) scan_kernel(const Parameters parameters) {
    __shared__ ScanShared shared;
    CudaBlock block;
    scan<Logit>(block, parameters, shared);
}

template <typename Logit>
__global__ void __launch_bounds__(kScanThreads) scan_softmax_kernel(const Parameters parameters) {
    __shared__ SoftmaxShared shared;
    CudaBlock block;
    scan_softmax<Logit>(block, parameters, shared);
}

__global__ void __launch_bounds__(kRankThreads, 1) rank_and_keep_kernel(const Parameters parameters) {
    __shared__ RankShared shared;
    CudaBlock block;
    rank_and_keep(block, parameters, shared);
}

template <typename Logit>
void launch_scan(const Parameters& parameters, uint32_t batch_size, cudaStream_t stream) {
    const dim3 grid(num_scan_blocks(parameters), batch_size);
    if (parameters.score_activation == Activation::softmax) {
        scan_softmax_kernel<Logit><<<grid, kScanThreads, 0, stream>>>(parameters);
    } else {
        scan_kernel<Logit><<<grid, kScanThreads, 0, stream>>>(parameters);
    }
}

}  // namespace
}  // namespace cuda

int decode_nms_cuda_enqueue(const DecodeNmsAttributes& attributes, const DecodeNmsCudaInputs& inputs,
                            const DecodeNmsOutputs& outputs, void* workspace, CUstream_st* stream) {
    const cuda::Parameters parameters = cuda::make_parameters(attributes, inputs, outputs, workspace);
    const uint32_t batch_size = static_cast<uint32_t>(inputs.batch_size);
    if (batch_size == 0) return cudaSuccess;
    const cudaError_t cleared =
        cudaMemsetAsync(parameters.num_candidates, 0, batch_size * sizeof(uint32_t), stream);
    if (cleared != cudaSuccess) return cleared;
    if (parameters.num_anchors > 0) {
        if (inputs.class_logits.type == HeadType::float32) {
            cuda::launch_scan<float>(parameters, batch_size, stream);
        } else {
            cuda::launch_scan<cuda::Half>(parameters, batch_size, stream);
        }
    }
    cuda::rank_and_keep_kernel<<<dim3(1, batch_size), cuda::kRankThreads, 0, stream>>>(parameters);
    return cudaGetLastError();
}

}  // namespace boxwright
