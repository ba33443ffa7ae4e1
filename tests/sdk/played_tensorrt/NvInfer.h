// A TensorRT for tests, as much of it as the SDK uses, by the same names. Its one engine finds bright spots: a box over
// the left upper quarter of an image of 24x40, whose score is the mean of it.
#ifndef BOXWRIGHT_TEST_NVINFER_H
#define BOXWRIGHT_TEST_NVINFER_H

#include <cstdint>
#include <cstring>
#include <map>
#include <string>

#include "cuda_runtime_api.h"

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kUINT8 = 5 };
enum class TensorIOMode : int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class TensorLocation : int32_t { kDEVICE = 0, kHOST = 1 };
struct Dims {
    int32_t nbDims;
    int32_t d[8];
};

class ILogger {
   public:
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, const char* message) noexcept = 0;
    virtual ~ILogger() = default;
};

constexpr int kHeight = 24, kWidth = 40, kMost = 5;
struct Description {
    TensorIOMode mode;
    DataType type;
    Dims dims;
};
inline const std::map<std::string, Description>& tensors() {
    static const std::map<std::string, Description> all = {
        {"images", {TensorIOMode::kINPUT, DataType::kFLOAT, {4, {1, 3, kHeight, kWidth}}}},
        {"score_threshold", {TensorIOMode::kINPUT, DataType::kFLOAT, {0, {}}}},
        {"iou_threshold", {TensorIOMode::kINPUT, DataType::kFLOAT, {1, {1}}}},
        {"num_detections", {TensorIOMode::kOUTPUT, DataType::kINT32, {2, {1, 1}}}},
        {"boxes", {TensorIOMode::kOUTPUT, DataType::kFLOAT, {3, {1, kMost, 4}}}},
        {"scores", {TensorIOMode::kOUTPUT, DataType::kFLOAT, {2, {1, kMost}}}},
        {"class_ids", {TensorIOMode::kOUTPUT, DataType::kINT32, {2, {1, kMost}}}},
    };
    return all;
}

class IExecutionContext {
   public:
    explicit IExecutionContext(ILogger& log) : log_(log) {}
    bool setInputShape(const char* name, const Dims& dims) noexcept {
        const Dims& declared = tensors().at(name).dims;
        return dims.nbDims == declared.nbDims && std::memcmp(dims.d, declared.d, sizeof(int32_t) * dims.nbDims) == 0;
    }
    Dims getTensorShape(const char* name) const noexcept { return tensors().at(name).dims; }
    bool setTensorAddress(const char* name, void* address) noexcept {
        addresses_[name] = address;
        return address != nullptr;
    }
    bool enqueueV3(cudaStream_t stream) noexcept {
        if (played::is("PLAYED_FAULT", "run") || addresses_.size() != tensors().size()) {
            log_.log(ILogger::Severity::kERROR, "Error Code 1: Cuda Runtime (an illegal memory access)");
            return false;
        }
        stream->work.push_back([this] { run(); });
        return true;
    }

   private:
    void run() {
        const auto* images = static_cast<const float*>(addresses_["images"]);
        float sum = 0.0f;
        for (int channel = 0; channel < 3; ++channel) {
            for (int y = 0; y < kHeight / 2; ++y) {
                for (int x = 0; x < kWidth / 2; ++x) sum += images[(channel * kHeight + y) * kWidth + x];
            }
        }
        const float mean = sum / (3 * kHeight / 2 * kWidth / 2) / 255.0f;
        const bool found = mean > *static_cast<const float*>(addresses_["score_threshold"]);
        *static_cast<int32_t*>(addresses_["num_detections"]) = found;
        const float box[] = {0, 0, kWidth / 2, kHeight / 2};
        std::memcpy(addresses_["boxes"], box, sizeof(box));
        static_cast<float*>(addresses_["scores"])[0] = mean;
        static_cast<int32_t*>(addresses_["class_ids"])[0] = 1;
    }

    ILogger& log_;
    std::map<std::string, void*> addresses_;
};

class ICudaEngine {
   public:
    explicit ICudaEngine(ILogger& log) : log_(log) {}
    IExecutionContext* createExecutionContext() noexcept {
        return played::is("PLAYED_FAULT", "context") ? nullptr : new IExecutionContext(log_);
    }
    int32_t getNbIOTensors() const noexcept { return static_cast<int32_t>(tensors().size()); }
    const char* getIOTensorName(int32_t index) const noexcept { return std::next(tensors().begin(), index)->first.c_str(); }
    DataType getTensorDataType(const char* name) const noexcept { return tensors().at(name).type; }
    TensorIOMode getTensorIOMode(const char* name) const noexcept { return tensors().at(name).mode; }
    Dims getTensorShape(const char* name) const noexcept { return tensors().at(name).dims; }
    // A threshold that decides on sizes is read on the CPU's side.
    TensorLocation getTensorLocation(const char* name) const noexcept {
        return std::string(name) == "iou_threshold" ? TensorLocation::kHOST : TensorLocation::kDEVICE;
    }

   private:
    ILogger& log_;
};

class IRuntime {
   public:
    explicit IRuntime(ILogger& log) : log_(log) {}
    ICudaEngine* deserializeCudaEngine(const void* content, size_t size) noexcept {
        if (size >= 6 && std::memcmp(content, "engine", 6) == 0) return new ICudaEngine(log_);
        log_.log(ILogger::Severity::kERROR, "Error Code 1: Serialization (Magic tag does not match)");
        log_.log(ILogger::Severity::kERROR, "Error Code 4: Internal Error (Engine deserialization failed.)");
        return nullptr;
    }

   private:
    ILogger& log_;
};

inline IRuntime* createInferRuntime(ILogger& log) { return new IRuntime(log); }

}  // namespace nvinfer1

#endif
