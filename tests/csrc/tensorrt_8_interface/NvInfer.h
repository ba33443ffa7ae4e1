// What a plugin shares with the library of TensorRT 8.5: the same names, values and tables of functions, no more, written
// down for machines that have the library from the Python index, which comes without headers.
// tests/csrc/test_tensorrt_interface.py holds it to NVIDIA's own header where that is here.
#ifndef BOXWRIGHT_TENSORRT_8_INTERFACE_H
#define BOXWRIGHT_TENSORRT_8_INTERFACE_H

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "NvInferVersion.h"

struct cublasContext;
struct cudnnContext;

namespace nvinfer1 {

constexpr int32_t kVersionNumber = NV_TENSORRT_MAJOR * 1000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
constexpr int32_t version_of_plugin(int32_t kind) { return kind << 24 | kVersionNumber; }

class IErrorRecorder;
class IGpuAllocator;

// ---- numbers and shapes ----

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kUINT8 = 5 };

enum class TensorFormat : int32_t { kLINEAR = 0, kCHW2 = 1, kHWC8 = 2, kCHW4 = 3, kCHW16 = 4, kCHW32 = 5 };

class Dims32 {
   public:
    static constexpr int32_t MAX_DIMS = 8;
    int32_t nbDims;
    int32_t d[MAX_DIMS];
};
using Dims = Dims32;

struct PluginTensorDesc {
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};

struct DynamicPluginTensorDesc {
    PluginTensorDesc desc;
    Dims min;
    Dims max;
};

// ---- sizes that are expressions, behind which the library hides its own classes ----

enum class DimensionOperation : int32_t {
    kSUM = 0, kPROD = 1, kMAX = 2, kMIN = 3, kSUB = 4, kEQUAL = 5, kLESS = 6, kFLOOR_DIV = 7, kCEIL_DIV = 8
};

class IDimensionExpr;

namespace apiv {

class VRoot {
   public:
    virtual ~VRoot() noexcept = default;
};

class VDimensionExpr : public VRoot {
   public:
    virtual bool isConstant() const = 0;
    virtual int32_t getConstantValue() const = 0;
};

class VExprBuilder : public VRoot {
   public:
    virtual const IDimensionExpr* constant(int32_t value) = 0;
    virtual const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) = 0;
};

class VNetworkDefinition;

}  // namespace apiv

class INoCopy {
   public:
    INoCopy(const INoCopy&) = delete;
    INoCopy& operator=(const INoCopy&) = delete;

   protected:
    INoCopy() = default;
    virtual ~INoCopy() = default;
};

class IDimensionExpr : public INoCopy {
   public:
    bool isConstant() const noexcept { return mImpl->isConstant(); }
    int32_t getConstantValue() const noexcept { return mImpl->getConstantValue(); }

   protected:
    apiv::VDimensionExpr* mImpl;
    virtual ~IDimensionExpr() noexcept = default;
};

class IExprBuilder : public INoCopy {
   public:
    const IDimensionExpr* constant(int32_t value) noexcept { return mImpl->constant(value); }

   protected:
    apiv::VExprBuilder* mImpl;
    virtual ~IExprBuilder() noexcept = default;
};

class DimsExprs {
   public:
    int32_t nbDims;
    const IDimensionExpr* d[Dims::MAX_DIMS];
};

class INetworkDefinition : public INoCopy {
   public:
    virtual ~INetworkDefinition() noexcept = default;

   protected:
    apiv::VNetworkDefinition* mImpl;
};

// ---- plugins ----

// In the order of their tables: the plainest plugin, what came later, and what came with shapes that are open.
class IPluginV2 {
   public:
    IPluginV2() = default;
    virtual int32_t getTensorRTVersion() const noexcept { return kVersionNumber; }
    virtual const char* getPluginType() const noexcept = 0;
    virtual const char* getPluginVersion() const noexcept = 0;
    virtual int32_t getNbOutputs() const noexcept = 0;
    virtual Dims getOutputDimensions(int32_t, const Dims*, int32_t) noexcept = 0;
    virtual bool supportsFormat(DataType, TensorFormat) const noexcept = 0;
    virtual void configureWithFormat(const Dims*, int32_t, const Dims*, int32_t, DataType, TensorFormat,
                                     int32_t) noexcept = 0;
    virtual int32_t initialize() noexcept = 0;
    virtual void terminate() noexcept = 0;
    virtual size_t getWorkspaceSize(int32_t) const noexcept = 0;
    virtual int32_t enqueue(int32_t, const void* const*, void* const*, void*, cudaStream_t) noexcept = 0;
    virtual size_t getSerializationSize() const noexcept = 0;
    virtual void serialize(void*) const noexcept = 0;
    virtual void destroy() noexcept = 0;
    virtual IPluginV2* clone() const noexcept = 0;
    virtual void setPluginNamespace(const char*) noexcept = 0;
    virtual const char* getPluginNamespace() const noexcept = 0;
    virtual ~IPluginV2() noexcept = default;

   protected:
    IPluginV2(const IPluginV2&) = default;
    IPluginV2& operator=(const IPluginV2&) = default;
};

class IPluginV2Ext : public IPluginV2 {
   public:
    virtual DataType getOutputDataType(int32_t, const DataType*, int32_t) const noexcept = 0;
    virtual bool isOutputBroadcastAcrossBatch(int32_t, const bool*, int32_t) const noexcept = 0;
    virtual bool canBroadcastInputAcrossBatch(int32_t) const noexcept = 0;
    virtual void configurePlugin(const Dims*, int32_t, const Dims*, int32_t, const DataType*, const DataType*,
                                 const bool*, const bool*, TensorFormat, int32_t) noexcept = 0;
    virtual void attachToContext(cudnnContext*, cublasContext*, IGpuAllocator*) noexcept {}
    virtual void detachFromContext() noexcept {}
    IPluginV2Ext* clone() const noexcept override = 0;

   protected:
    int32_t getTensorRTVersion() const noexcept override { return version_of_plugin(1); }
    void configureWithFormat(const Dims*, int32_t, const Dims*, int32_t, DataType, TensorFormat,
                             int32_t) noexcept override {}
};

class IPluginV2DynamicExt : public IPluginV2Ext {
   public:
    IPluginV2DynamicExt* clone() const noexcept override = 0;
    virtual DimsExprs getOutputDimensions(int32_t, const DimsExprs*, int32_t, IExprBuilder&) noexcept = 0;
    virtual bool supportsFormatCombination(int32_t, const PluginTensorDesc*, int32_t, int32_t) noexcept = 0;
    virtual void configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                                 int32_t) noexcept = 0;
    virtual size_t getWorkspaceSize(const PluginTensorDesc*, int32_t, const PluginTensorDesc*,
                                    int32_t) const noexcept = 0;
    virtual int32_t enqueue(const PluginTensorDesc*, const PluginTensorDesc*, const void* const*, void* const*, void*,
                            cudaStream_t) noexcept = 0;

   protected:
    int32_t getTensorRTVersion() const noexcept override { return version_of_plugin(3); }
    virtual ~IPluginV2DynamicExt() noexcept {}

   private:  // what shapes that are open have no use for
    Dims getOutputDimensions(int32_t, const Dims*, int32_t) noexcept final { return Dims{-1, {}}; }
    bool supportsFormat(DataType, TensorFormat) const noexcept final { return false; }
    bool isOutputBroadcastAcrossBatch(int32_t, const bool*, int32_t) const noexcept final { return false; }
    bool canBroadcastInputAcrossBatch(int32_t) const noexcept final { return true; }
    void configurePlugin(const Dims*, int32_t, const Dims*, int32_t, const DataType*, const DataType*, const bool*,
                         const bool*, TensorFormat, int32_t) noexcept final {}
    size_t getWorkspaceSize(int32_t) const noexcept final { return 0; }
    int32_t enqueue(int32_t, const void* const*, void* const*, void*, cudaStream_t) noexcept final { return 1; }
};

enum class PluginFieldType : int32_t {
    kFLOAT16 = 0, kFLOAT32 = 1, kFLOAT64 = 2, kINT8 = 3, kINT16 = 4, kINT32 = 5, kCHAR = 6, kDIMS = 7, kUNKNOWN = 8
};

class PluginField {
   public:
    const char* name;
    const void* data;
    PluginFieldType type;
    int32_t length;

    PluginField(const char* its_name = nullptr, const void* its_data = nullptr,
                PluginFieldType its_type = PluginFieldType::kUNKNOWN, int32_t its_length = 0) noexcept
        : name(its_name), data(its_data), type(its_type), length(its_length) {}
};

struct PluginFieldCollection {
    int32_t nbFields;
    const PluginField* fields;
};

class IPluginCreator {
   public:
    IPluginCreator() = default;
    virtual int32_t getTensorRTVersion() const noexcept { return kVersionNumber; }
    virtual const char* getPluginName() const noexcept = 0;
    virtual const char* getPluginVersion() const noexcept = 0;
    virtual const PluginFieldCollection* getFieldNames() noexcept = 0;
    virtual IPluginV2* createPlugin(const char*, const PluginFieldCollection*) noexcept = 0;
    virtual IPluginV2* deserializePlugin(const char*, const void*, size_t) noexcept = 0;
    virtual void setPluginNamespace(const char*) noexcept = 0;
    virtual const char* getPluginNamespace() const noexcept = 0;
    virtual ~IPluginCreator() = default;

   protected:
    IPluginCreator(const IPluginCreator&) = default;
    IPluginCreator& operator=(const IPluginCreator&) = default;
};

class IPluginRegistry {
   public:
    IPluginRegistry() = default;
    IPluginRegistry(const IPluginRegistry&) = delete;
    IPluginRegistry& operator=(const IPluginRegistry&) = delete;
    virtual bool registerCreator(IPluginCreator&, const char*) noexcept = 0;
    virtual IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept = 0;
    virtual IPluginCreator* getPluginCreator(const char*, const char*, const char* = "") noexcept = 0;

   protected:
    virtual ~IPluginRegistry() noexcept = default;

   public:
    virtual void setErrorRecorder(IErrorRecorder*) noexcept = 0;
    virtual IErrorRecorder* getErrorRecorder() const noexcept = 0;
    virtual bool deregisterCreator(const IPluginCreator&) noexcept = 0;
};

class ILogger {
   public:
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };

    ILogger() = default;
    virtual void log(Severity severity, const char* message) noexcept = 0;
    virtual ~ILogger() = default;
};

}  // namespace nvinfer1

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept;
extern "C" nvinfer1::ILogger* getLogger() noexcept;

#endif
