// What the SDK reads of an ONNX file itself: its metadata, and the file without some initializers.
#ifndef BOXWRIGHT_SDK_ONNX_FILE_H
#define BOXWRIGHT_SDK_ONNX_FILE_H

#include <string>
#include <vector>

namespace boxwright {

// The value of a `metadata_props` key; empty where there is none. Throws Error where the file is cut off or no ONNX.
std::string onnx_metadata(const std::string& content, const std::string& key);

// The same model, inputs of these names no longer having defaults, since OpenVINO would make constants of them.
std::string onnx_without_initializers(const std::string& content, const std::vector<std::string>& names);

}  // namespace boxwright

#endif
