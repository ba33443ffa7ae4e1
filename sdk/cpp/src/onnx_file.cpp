#include "onnx_file.h"

#include <algorithm>
#include <cstdint>

#include "boxwright/detector.hpp"

namespace boxwright {

namespace {

// Field numbers of onnx.proto.
constexpr uint64_t kModelGraph = 7, kModelMetadata = 14, kGraphInitializer = 5, kGraphInput = 11;
constexpr uint64_t kTensorName = 8, kInputName = 1;
constexpr uint64_t kEntryKey = 1, kEntryValue = 2;
constexpr uint64_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;

struct Field {
    uint64_t number;
    uint64_t wire;
    size_t start;    // of the tag
    size_t content;  // behind tag and length
    size_t end;
};

[[noreturn]] void damaged() { throw Error("model: expected an intact ONNX file, got another; copy or export it again"); }

uint64_t read_varint(const std::string& data, size_t& position, size_t end) {
    uint64_t value = 0;
    for (unsigned shift = 0; position < end && shift < 64; shift += 7) {
        const uint64_t byte = static_cast<unsigned char>(data[position++]);
        value |= (byte & 0x7F) << shift;
        if (byte < 0x80) return value;
    }
    damaged();
}

Field read_field(const std::string& data, size_t position, size_t end) {
    Field field{0, 0, position, 0, 0};
    const uint64_t tag = read_varint(data, position, end);
    field.number = tag >> 3;
    field.wire = tag & 7;
    field.content = position;
    uint64_t size = 0;
    if (field.wire == kVarint) {
        read_varint(data, position, end);
    } else if (field.wire == kBytes) {
        size = read_varint(data, position, end);
        field.content = position;
    } else if (field.wire == kFixed64 || field.wire == kFixed32) {
        size = field.wire == kFixed64 ? 8 : 4;
    } else {
        damaged();
    }
    if (field.number == 0 || size > end - position) damaged();
    field.end = position + size;
    return field;
}

template <typename Visit>
void for_each_field(const std::string& data, size_t position, size_t end, Visit visit) {
    while (position < end) {
        const Field field = read_field(data, position, end);
        visit(field);
        position = field.end;
    }
}

std::string text_of(const std::string& data, const Field& message, uint64_t number) {
    std::string text;
    for_each_field(data, message.content, message.end, [&](const Field& field) {
        if (field.number == number && field.wire == kBytes) text = data.substr(field.content, field.end - field.content);
    });
    return text;
}

std::string varint_bytes(uint64_t value) {
    std::string bytes;
    for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
    return bytes + static_cast<char>(value);
}

}  // namespace

std::string onnx_metadata(const std::string& content, const std::string& key) {
    std::string value;
    for_each_field(content, 0, content.size(), [&](const Field& field) {
        const bool is_entry = field.number == kModelMetadata && field.wire == kBytes;
        if (is_entry && text_of(content, field, kEntryKey) == key) value = text_of(content, field, kEntryValue);
    });
    return value;
}

std::string onnx_without_initializers(const std::string& content, const std::vector<std::string>& names) {
    std::string result;
    for_each_field(content, 0, content.size(), [&](const Field& field) {
        if (field.number != kModelGraph || field.wire != kBytes) {
            result.append(content, field.start, field.end - field.start);
            return;
        }
        std::vector<std::string> inputs;
        for_each_field(content, field.content, field.end, [&](const Field& part) {
            if (part.number == kGraphInput && part.wire == kBytes) inputs.push_back(text_of(content, part, kInputName));
        });
        const auto is_default_of_input = [&](const std::string& name) {
            return std::count(names.begin(), names.end(), name) > 0 && std::count(inputs.begin(), inputs.end(), name) > 0;
        };
        std::string graph;
        for_each_field(content, field.content, field.end, [&](const Field& part) {
            const bool is_initializer = part.number == kGraphInitializer && part.wire == kBytes;
            const bool is_left_out = is_initializer && is_default_of_input(text_of(content, part, kTensorName));
            if (!is_left_out) graph.append(content, part.start, part.end - part.start);
        });
        result += varint_bytes(kModelGraph << 3 | kBytes) + varint_bytes(graph.size()) + graph;
    });
    return result;
}

}  // namespace boxwright
