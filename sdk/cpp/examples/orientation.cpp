#include "orientation.h"

#include <cstring>

namespace {

constexpr unsigned kOrientationTag = 0x0112;
constexpr unsigned kShort = 3;  // TIFF's type of 16-bit numbers

// Numbers of a TIFF block, in the order of bytes that it declares; 0 where they lie outside.
struct Tiff {
    const uint8_t* data;
    size_t size;
    bool is_little;

    uint32_t read(size_t place, size_t count) const {
        if (place > size || count > size - place) return 0;
        uint32_t value = 0;
        for (size_t i = 0; i < count; ++i) value = value << 8 | data[place + (is_little ? count - 1 - i : i)];
        return value;
    }
};

}  // namespace

// Source: EXIF 2.3, section 4.6.2 (structure) and 4.6.4 (orientation).
int tiff_orientation(const uint8_t* data, size_t size) {
    const bool is_little = size >= 8 && std::memcmp(data, "II", 2) == 0;
    if (!is_little && !(size >= 8 && std::memcmp(data, "MM", 2) == 0)) return 1;
    const Tiff tiff{data, size, is_little};
    const size_t directory = tiff.read(4, 4);
    const uint32_t num_entries = tiff.read(directory, 2);
    for (uint32_t i = 0; i < num_entries; ++i) {
        const size_t entry = directory + 2 + 12 * static_cast<size_t>(i);
        if (tiff.read(entry, 2) != kOrientationTag || tiff.read(entry + 2, 2) != kShort) continue;
        const uint32_t value = tiff.read(entry + 8, 2);
        return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
    }
    return 1;
}

int png_orientation(const std::vector<uint8_t>& file) {
    const Tiff numbers{file.data(), file.size(), false};
    for (size_t chunk = 8; chunk + 12 <= file.size();) {  // behind the signature: length, kind, content, CRC
        const size_t length = numbers.read(chunk, 4), content = chunk + 8;
        if (length > file.size() - content) return 1;
        if (std::memcmp(&file[chunk + 4], "eXIf", 4) == 0) return tiff_orientation(&file[content], length);
        chunk = content + length + 4;
    }
    return 1;
}

Picture turned(Picture picture, int orientation) {
    if (orientation <= 1 || orientation > 8) return picture;
    const bool is_transposed = orientation >= 5;
    Picture result;
    result.height = is_transposed ? picture.width : picture.height;
    result.width = is_transposed ? picture.height : picture.width;
    result.bgr.resize(picture.bgr.size());
    // Where the first row and the first column of the stored picture belong: 2 top right, 3 bottom right, 4 bottom left,
    // 5 left top, 6 right top, 7 right bottom, 8 left bottom.
    const bool mirrors_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool mirrors_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    for (int64_t y = 0; y < result.height; ++y) {
        for (int64_t x = 0; x < result.width; ++x) {
            const int64_t along_row = is_transposed ? y : x, along_column = is_transposed ? x : y;
            const int64_t column = mirrors_x ? picture.width - 1 - along_row : along_row;
            const int64_t row = mirrors_y ? picture.height - 1 - along_column : along_column;
            std::memcpy(&result.bgr[static_cast<size_t>(3 * (y * result.width + x))],
                        &picture.bgr[static_cast<size_t>(3 * (row * picture.width + column))], 3);
        }
    }
    return result;
}
