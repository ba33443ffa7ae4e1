// The library of the CUDA kernels: pointers are to device memory, which it hands out as well, so that a test needs no
// other package.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

#include "decode_nms_cuda_entry.h"

namespace {

boxwright::DecodeNmsAttributes attributes_of(const EntryAttributes& attributes) {
    boxwright::DecodeNmsAttributes taken_attributes;
    boxwright::take(attributes, taken_attributes);
    return taken_attributes;
}

}  // namespace

extern "C" {

// The name of the GPU; false where there is none.
int device_name(char* name, size_t size) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return 0;
    std::snprintf(name, size, "%s", properties.name);
    return 1;
}

void* allocate(size_t size) {
    void* memory = nullptr;
    return cudaMalloc(&memory, size) == cudaSuccess ? memory : nullptr;
}

void release(void* memory) { cudaFree(memory); }

int copy_to_device(void* to, const void* from, size_t size) {
    return cudaMemcpy(to, from, size, cudaMemcpyHostToDevice);
}

int copy_from_device(void* to, const void* from, size_t size) {
    return cudaMemcpy(to, from, size, cudaMemcpyDeviceToHost);
}

size_t workspace_size(const EntryAttributes* attributes, const EntryInputs* inputs) {
    return boxwright::entry_workspace_size(*attributes, *inputs);
}

// `order` is the emulation's: a GPU has its own.
int decode_nms(const EntryAttributes* attributes, const EntryInputs* inputs, const EntryOutputs* outputs,
               void* workspace, int32_t, char* message, size_t message_size) {
    return boxwright::run_entry(
        *attributes, *inputs, *outputs, message, message_size, [&](const auto& a, const auto& i, const auto& o) {
            const int launched = boxwright::decode_nms_cuda_enqueue(a, i, o, workspace, nullptr);
            return launched != 0 ? launched : static_cast<int>(cudaDeviceSynchronize());
        });
}

// The median time of a run in microseconds, the runs being replayed as a CUDA graph; negative where that fails.
float median_time_us(const EntryAttributes* attributes, const EntryInputs* inputs, const EntryOutputs* outputs,
                     void* workspace, int32_t num_runs) {
    const boxwright::DecodeNmsAttributes taken_attributes = attributes_of(*attributes);
    const boxwright::DecodeNmsOutputs taken_outputs = {outputs->num_detections, outputs->boxes, outputs->scores,
                                                       outputs->class_ids};
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    if (cudaStreamCreate(&stream) != cudaSuccess) return -1.0f;
    if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) != cudaSuccess) return -2.0f;
    const int queued = static_cast<int>(
        boxwright::decode_nms_cuda_enqueue(taken_attributes, boxwright::taken(*inputs), taken_outputs, workspace, stream));
    if (cudaStreamEndCapture(stream, &graph) != cudaSuccess || queued != 0) return -3.0f;
    if (cudaGraphInstantiateWithFlags(&replay, graph, 0) != cudaSuccess) return -4.0f;
    cudaEvent_t begin = nullptr, end = nullptr;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    std::vector<float> times;
    for (int32_t run = 0; run < num_runs + 20; ++run) {
        cudaEventRecord(begin, stream);
        if (cudaGraphLaunch(replay, stream) != cudaSuccess) return -6.0f;
        cudaEventRecord(end, stream);
        if (cudaEventSynchronize(end) != cudaSuccess) return -5.0f;
        float milliseconds = 0.0f;
        cudaEventElapsedTime(&milliseconds, begin, end);
        if (run >= 20) times.push_back(1000.0f * milliseconds);
    }
    std::nth_element(times.begin(), times.begin() + num_runs / 2, times.end());
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaGraphExecDestroy(replay);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    return times[static_cast<size_t>(num_runs / 2)];
}
}
