// Asks the ONNX parser of TensorRT 8 which operators it has importers for: names on stdin, "name 0" or "name 1" on stdout.
//
// A parser wants a network, and a network a builder and a GPU. This one is given a network that does nothing, which the
// question does not need. Its class is not in the Python wheel's headers, so its table of functions is named here.
#include <NvInfer.h>
#include <dlfcn.h>

#include <iostream>
#include <string>

namespace {

long nothing() { return 0; }

class Network : public nvinfer1::INetworkDefinition {
   public:
    Network() {
        for (void*& entry : table_) entry = reinterpret_cast<void*>(&nothing);
        mImpl = reinterpret_cast<nvinfer1::apiv::VNetworkDefinition*>(&object_);
    }

   private:
    void* table_[512];
    void* object_ = table_;
};

class Logger : public nvinfer1::ILogger {
   public:
    void log(Severity, const char* text) noexcept override { std::cerr << text << '\n'; }
};

// nvonnxparser::IParser of 8.5: parse, parseFromFile, supportsModel, parseWithWeightDescriptors, supportsOperator.
constexpr int kSupportsOperator = 4;
using SupportsOperator = bool (*)(void*, const char*);

}  // namespace

int main(int, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (library == nullptr) {
        std::cerr << dlerror() << '\n';
        return 2;
    }
    const auto create = reinterpret_cast<void* (*)(void*, void*, int)>(dlsym(library, "createNvOnnxParser_INTERNAL"));
    const auto version = reinterpret_cast<int (*)()>(dlsym(library, "getNvOnnxParserVersion"));
    Network network;
    Logger logger;
    void* parser = create(&network, &logger, version());
    const SupportsOperator supports = (*static_cast<SupportsOperator**>(parser))[kSupportsOperator];
    for (std::string name; std::getline(std::cin, name);) std::cout << name << ' ' << supports(parser, name.c_str()) << '\n';
}
