// The library of the CUDA kernels: pointers are to device memory, `stream` is a cudaStream_t.
#include "decode_nms_cuda_entry.h"

extern "C" {

size_t workspace_size(const EntryAttributes* attributes, const EntryInputs* inputs) {
    return boxwright::entry_workspace_size(*attributes, *inputs);
}

int decode_nms(const EntryAttributes* attributes, const EntryInputs* inputs, const EntryOutputs* outputs,
               void* workspace, void* stream, char* message, size_t message_size) {
    return boxwright::run_entry(
        *attributes, *inputs, *outputs, message, message_size, [&](const auto& a, const auto& i, const auto& o) {
            return boxwright::decode_nms_cuda_enqueue(a, i, o, workspace, static_cast<CUstream_st*>(stream));
        });
}
}
