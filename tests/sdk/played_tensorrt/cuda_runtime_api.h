// A CUDA for tests: what is put on a stream is done when somebody waits for it, and not before; the GPU's memory is not
// the CPU's unless it is mapped. PLAYED_INTEGRATED=1 plays a GPU that shares the CPU's memory.
#ifndef BOXWRIGHT_TEST_CUDA_RUNTIME_API_H
#define BOXWRIGHT_TEST_CUDA_RUNTIME_API_H

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorInsufficientDriver = 35 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaDeviceAttr { cudaDevAttrIntegrated = 18 };
constexpr unsigned cudaHostAllocMapped = 2;
constexpr unsigned cudaStreamNonBlocking = 1;
struct CUstream_st {
    std::vector<std::function<void()>> work;
};
using cudaStream_t = CUstream_st*;

namespace played {
inline bool is(const char* variable, const char* value) {
    const char* found = std::getenv(variable);
    return found != nullptr && std::string(found) == value;
}
inline int live = 0;  // pieces of memory and streams in use
}  // namespace played

inline const char* cudaGetErrorString(cudaError_t status) {
    return status == cudaErrorMemoryAllocation ? "out of memory" : "CUDA driver version is insufficient";
}
inline cudaError_t cudaSetDevice(int) {
    return played::is("PLAYED_FAULT", "driver") ? cudaErrorInsufficientDriver : cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = played::is("PLAYED_INTEGRATED", "1");
    return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** address, size_t bytes) {
    if (played::is("PLAYED_FAULT", "memory")) return cudaErrorMemoryAllocation;
    *address = std::memset(std::malloc(bytes), 0xA5, bytes);
    ++played::live;
    return cudaSuccess;
}
inline cudaError_t cudaFree(void* address) {
    std::free(address);
    --played::live;
    return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) { return cudaMalloc(address, bytes); }
inline cudaError_t cudaFreeHost(void* address) { return cudaFree(address); }
inline cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
    *device = host;
    return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = new CUstream_st;
    ++played::live;
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    for (const auto& work : stream->work) work();
    stream->work.clear();
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    --played::live;
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    stream->work.push_back([=] { std::memcpy(target, source, bytes); });
    return cudaSuccess;
}

#endif
