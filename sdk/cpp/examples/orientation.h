// The EXIF orientation of an image file, and turning a picture by it, so that it lies as viewers show it.
#ifndef BOXWRIGHT_EXAMPLE_ORIENTATION_H
#define BOXWRIGHT_EXAMPLE_ORIENTATION_H

#include <cstddef>
#include <cstdint>
#include <vector>

struct Picture {
    std::vector<uint8_t> bgr;
    int64_t height = 0;
    int64_t width = 0;
};

// 1 (as it is) to 8, of a TIFF block as EXIF has it ("II" or "MM" first); 1 where it says none or is damaged.
int tiff_orientation(const uint8_t* data, size_t size);

// That of the eXIf chunk of a whole PNG file.
int png_orientation(const std::vector<uint8_t>& file);

// The picture as an orientation of 1 to 8 wants it shown.
Picture turned(Picture picture, int orientation);

#endif
