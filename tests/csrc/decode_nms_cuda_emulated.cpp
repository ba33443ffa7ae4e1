// The library of the emulated CUDA kernels.
#include "decode_nms_cuda_entry.h"
#include "emulated_block.h"

extern "C" {

size_t workspace_size(const EntryAttributes* attributes, const EntryInputs* inputs) {
    return boxwright::entry_workspace_size(*attributes, *inputs);
}

int decode_nms(const EntryAttributes* attributes, const EntryInputs* inputs, const EntryOutputs* outputs,
               void* workspace, int32_t order, char* message, size_t message_size) {
    return boxwright::run_entry(
        *attributes, *inputs, *outputs, message, message_size, [&](const auto& a, const auto& i, const auto& o) {
            boxwright::cuda::emulate_decode_nms(a, i, o, workspace, static_cast<boxwright::cuda::ThreadOrder>(order));
            return 0;
        });
}
}
