// TensorRT on an NVIDIA GPU: an engine that `boxwright export --format tensorrt` or trtexec built on this machine.
// Its manifest lies beside it, as m.engine.manifest.json, or in the m.onnx that trtexec was given. An engine with the
// node DecodeNMS needs Boxwright's plugin to be loaded before, e.g. by LD_PRELOAD.
#include <NvInfer.h>
#include <NvInferPlugin.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>

#include "engine.h"
#include "json.h"
#include "onnx_file.h"

namespace boxwright {

namespace {

// Keeps what went wrong first; what TensorRT says after that is that something did.
class Log : public nvinfer1::ILogger {
   public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard<std::mutex> guard(mutex_);
        if (cause_.empty()) cause_ = message;
    }
    std::string take_cause() {
        const std::lock_guard<std::mutex> guard(mutex_);
        std::string cause = cause_.empty() ? "an error without a message" : cause_;
        cause_.clear();
        std::replace(cause.begin(), cause.end(), '\n', ' ');
        return cause;
    }

   private:
    std::mutex mutex_;
    std::string cause_;
};

// One for the process: TensorRT keeps the first that it is given.
Log& the_log() {
    static Log log;
    return log;
}

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    const std::string reason = cudaGetErrorString(status);
    if (status == cudaErrorMemoryAllocation) {
        throw Error(std::string("GPU memory: expected room for ") + what + ", got " + reason +
                    "; end other programs on this GPU");
    }
    throw Error(std::string("CUDA: expected a working NVIDIA GPU for ") + what + ", got " + reason +
                "; see what nvidia-smi says");
}

// Memory on the CPU's side, pinned, and on the GPU's; one piece where the two share it, as on a Jetson.
class Buffer {
   public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { release(); }

    void reserve(size_t bytes, bool is_shared) {
        if (bytes <= size_ && host_ != nullptr) return;
        release();
        check(cudaHostAlloc(&host_, std::max<size_t>(bytes, 1), is_shared ? cudaHostAllocMapped : 0u), "a tensor");
        if (is_shared) {
            check(cudaHostGetDevicePointer(&device_, host_, 0), "a tensor");
        } else {
            check(cudaMalloc(&device_, std::max<size_t>(bytes, 1)), "a tensor");
        }
        is_shared_ = is_shared;
        size_ = bytes;
    }
    void* host() const { return host_; }
    void* device() const { return device_; }

   private:
    void release() {
        if (device_ != nullptr && !is_shared_) cudaFree(device_);
        if (host_ != nullptr) cudaFreeHost(host_);
        host_ = device_ = nullptr;
    }

    void* host_ = nullptr;
    void* device_ = nullptr;
    size_t size_ = 0;
    bool is_shared_ = false;
};

// What is on it is over before it goes.
class Stream {
   public:
    Stream() = default;
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() {
        if (handle_ == nullptr) return;
        cudaStreamSynchronize(handle_);
        cudaStreamDestroy(handle_);
    }
    void open() { check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "TensorRT"); }
    operator cudaStream_t() const { return handle_; }

   private:
    cudaStream_t handle_ = nullptr;
};

size_t element_bytes(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
        case nvinfer1::DataType::kINT32: return 4;
        case nvinfer1::DataType::kHALF: return 2;
        default: return 1;
    }
}

std::vector<int64_t> to_shape(const nvinfer1::Dims& dims) { return {dims.d, dims.d + std::max(dims.nbDims, 0)}; }

size_t count(const std::vector<int64_t>& shape) {
    size_t product = 1;
    for (const int64_t side : shape) product *= static_cast<size_t>(std::max<int64_t>(side, 0));
    return product;
}

struct TensorState {
    nvinfer1::DataType type = nvinfer1::DataType::kFLOAT;
    bool is_input = false;
    bool is_on_host = false;  // TensorRT reads it on the CPU's side, since sizes depend on its value
    std::vector<int64_t> declared;
    std::vector<int64_t> shape;  // of this run
    const void* source = nullptr;
    Buffer buffer;
};

class TensorRtEngine : public Engine {
   public:
    TensorRtEngine(const std::string& path, const Options& options) : path_(path) {
        if (options.device.rfind("CPU", 0) != 0 && options.device.rfind("GPU", 0) != 0) {
            throw Error("device: expected GPU or GPU.1 with TensorRT, got " + options.device + "; leave it out");
        }
        const std::string content = read_model_file(path);
        read_sidecar();
        const int index = options.device.size() > 4 ? std::atoi(options.device.c_str() + 4) : 0;
        check(cudaSetDevice(index), "TensorRT");
        int is_integrated = 0;
        check(cudaDeviceGetAttribute(&is_integrated, cudaDevAttrIntegrated, index), "TensorRT");
        is_shared_ = is_integrated != 0;
        stream_.open();
        initLibNvInferPlugins(&the_log(), "");
        the_log().take_cause();
        runtime_.reset(nvinfer1::createInferRuntime(the_log()));
        if (!runtime_) throw Error("TensorRT: expected one that starts, got " + the_log().take_cause() + "; see nvidia-smi");
        engine_.reset(runtime_->deserializeCudaEngine(content.data(), content.size()));
        if (!engine_) {
            throw Error(path + ": expected an engine for this GPU and this TensorRT, got " + the_log().take_cause() +
                        "; run here: " + rebuild_command_);
        }
        context_.reset(engine_->createExecutionContext());
        if (!context_) throw Error(path + ": expected enough GPU memory, got " + the_log().take_cause() + "; end other programs");
        for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) describe(engine_->getIOTensorName(i));
    }

    std::string manifest() const override { return manifest_; }

    ImageInput image_input() const override {
        const auto found = tensors_.find(kImages);
        if (found == tensors_.end() || !found->second.is_input) return {};
        const TensorState& state = found->second;
        ElementType type = ElementType::other;
        if (state.type == nvinfer1::DataType::kFLOAT) type = ElementType::float32;
        if (state.type == nvinfer1::DataType::kUINT8) type = ElementType::uint8;
        return {type, state.declared};
    }

    bool has_threshold(const std::string& name) const override {
        const auto found = tensors_.find(name);
        return found != tensors_.end() && found->second.is_input;
    }

    bool has_output(const std::string& name) const override {
        const auto found = tensors_.find(name);
        return found != tensors_.end() && !found->second.is_input;
    }

    void set_image(float* data, const std::vector<int64_t>& shape) override { set(kImages, data, shape); }
    void set_image(uint8_t* data, const std::vector<int64_t>& shape) override { set(kImages, data, shape); }

    void set_threshold(const std::string& name, float value) override {
        float& kept = name == kThresholds[0] ? score_threshold_ : iou_threshold_;
        kept = value;
        set(name, &kept, tensors_.at(name).declared);
    }

    void run() override {
        for (auto& [name, state] : tensors_) {
            if (state.is_input) put_input(name, state);
        }
        for (auto& [name, state] : tensors_) {
            if (!state.is_input) place_output(name, state);
        }
        require(context_->enqueueV3(stream_));
        for (auto& [name, state] : tensors_) {
            if (state.is_input || is_shared_) continue;
            check(cudaMemcpyAsync(state.buffer.host(), state.buffer.device(), count(state.shape) * element_bytes(state.type),
                                  cudaMemcpyDeviceToHost, stream_),
                  "a result");
        }
        check(cudaStreamSynchronize(stream_), "a run");
    }

    Tensor<float> floats(const std::string& output) const override {
        return get<float>(output, nvinfer1::DataType::kFLOAT);
    }

    Tensor<int32_t> integers(const std::string& output) const override {
        return get<int32_t>(output, nvinfer1::DataType::kINT32);
    }

   private:
    // The manifest and the command that builds the engine again.
    void read_sidecar() {
        std::filesystem::path onnx_file = path_;
        onnx_file.replace_extension(".onnx");
        if (std::filesystem::is_regular_file(path_ + ".manifest.json")) {
            manifest_ = read_model_file(path_ + ".manifest.json");
            rebuild_command_ = json::parse(manifest_).text_at("rebuild_command");
        } else if (std::filesystem::is_regular_file(onnx_file)) {
            manifest_ = onnx_metadata(read_model_file(onnx_file.string()), kManifestKey);
        } else {
            throw Error(path_ + ": expected " + path_ + ".manifest.json beside it, or the .onnx that it was built from, "
                                "got neither; copy one of them too");
        }
    }

    void describe(const std::string& name) {
        TensorState& state = tensors_[name];
        state.type = engine_->getTensorDataType(name.c_str());
        state.is_input = engine_->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
        state.is_on_host = engine_->getTensorLocation(name.c_str()) == nvinfer1::TensorLocation::kHOST;
        state.declared = to_shape(engine_->getTensorShape(name.c_str()));
    }

    void set(const std::string& name, const void* data, const std::vector<int64_t>& shape) {
        TensorState& state = tensors_.at(name);
        state.source = data;
        state.shape = shape;
    }

    void put_input(const std::string& name, TensorState& state) {
        if (state.source == nullptr) throw Error(path_ + ": expected known inputs, got " + name + "; export it again");
        const size_t bytes = count(state.shape) * element_bytes(state.type);
        nvinfer1::Dims dims{};
        dims.nbDims = static_cast<int32_t>(state.shape.size());
        for (size_t i = 0; i < state.shape.size(); ++i) dims.d[i] = static_cast<int32_t>(state.shape[i]);
        const bool is_open = std::find(state.declared.begin(), state.declared.end(), -1) != state.declared.end();
        if (is_open && !context_->setInputShape(name.c_str(), dims)) {
            throw Error("image: expected a size that the engine was built for, got another (" + the_log().take_cause() +
                        "); build the engine with wider limits");
        }
        state.buffer.reserve(bytes, is_shared_);
        std::memcpy(state.buffer.host(), state.source, bytes);
        if (!is_shared_ && !state.is_on_host) {
            check(cudaMemcpyAsync(state.buffer.device(), state.buffer.host(), bytes, cudaMemcpyHostToDevice, stream_),
                  "the image");
        }
        require(context_->setTensorAddress(name.c_str(), state.is_on_host ? state.buffer.host() : state.buffer.device()));
    }

    void place_output(const std::string& name, TensorState& state) {
        state.shape = to_shape(context_->getTensorShape(name.c_str()));
        if (std::any_of(state.shape.begin(), state.shape.end(), [](int64_t side) { return side < 0; })) {
            throw Error(path_ + ": expected outputs of known sizes, got " + name + " without; export it again");
        }
        state.buffer.reserve(count(state.shape) * element_bytes(state.type), is_shared_);
        require(context_->setTensorAddress(name.c_str(), state.buffer.device()));
    }

    void require(bool succeeded) const {
        if (!succeeded) throw Error(path_ + ": expected a run on TensorRT, got " + the_log().take_cause() + "; build it again");
    }

    template <typename Element>
    Tensor<Element> get(const std::string& name, nvinfer1::DataType type) const {
        const TensorState& state = tensors_.at(name);
        if (state.type != type) throw Error("model: expected another type of the output " + name + "; export it again");
        return {static_cast<const Element*>(state.buffer.host()), state.shape};
    }

    std::string path_, manifest_;
    std::string rebuild_command_ = "boxwright export MODEL.onnx --format tensorrt, or trtexec";
    bool is_shared_ = false;
    float score_threshold_ = 0.0f, iou_threshold_ = 0.0f;
    std::map<std::string, TensorState> tensors_;
    // In this order, since each must go before the one above it.
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    Stream stream_;
};

}  // namespace

std::unique_ptr<Engine> open_tensorrt(const std::string& path, const Options& options) {
    return std::make_unique<TensorRtEngine>(path, options);
}

}  // namespace boxwright
