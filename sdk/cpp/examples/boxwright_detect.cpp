// boxwright_detect MODEL IMAGE [CONF [ENGINE]]: prints the detections of a JPEG or PNG image as JSON.
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <jpeglib.h>
#include <png.h>

#include "boxwright/detector.hpp"
#include "orientation.h"

namespace {

using Bytes = std::vector<uint8_t>;

// As OpenCV: a few bytes of a file may claim any size.
constexpr int64_t kMostPixels = int64_t{1} << 30;

struct JpegErrors {
    jpeg_error_mgr manager;
    std::jmp_buf jump;
};

void leave(j_common_ptr state) { std::longjmp(reinterpret_cast<JpegErrors*>(state->err)->jump, 1); }

// Nothing with a destructor lives between setjmp and the jump but what the caller owns.
bool read_jpeg(const Bytes& file, Picture& picture, int& orientation) {
    jpeg_decompress_struct state;
    JpegErrors errors;
    state.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = leave;
    if (setjmp(errors.jump) != 0) {
        jpeg_destroy_decompress(&state);
        return false;
    }
    jpeg_create_decompress(&state);
    jpeg_mem_src(&state, file.data(), static_cast<unsigned long>(file.size()));
    jpeg_save_markers(&state, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&state, TRUE);
    for (jpeg_saved_marker_ptr marker = state.marker_list; marker != nullptr; marker = marker->next) {
        if (marker->data_length > 6 && std::memcmp(marker->data, "Exif\0\0", 6) == 0) {
            orientation = tiff_orientation(marker->data + 6, marker->data_length - 6);
        }
    }
    state.out_color_space = JCS_EXT_BGR;
    jpeg_start_decompress(&state);
    picture.height = state.output_height;
    picture.width = state.output_width;
    if (picture.height * picture.width > kMostPixels) {
        jpeg_destroy_decompress(&state);
        return false;
    }
    picture.bgr.resize(static_cast<size_t>(picture.height * picture.width * 3));
    while (state.output_scanline < state.output_height) {
        JSAMPROW row = &picture.bgr[static_cast<size_t>(state.output_scanline) * static_cast<size_t>(picture.width) * 3];
        jpeg_read_scanlines(&state, &row, 1);
    }
    jpeg_finish_decompress(&state);
    const bool is_whole = errors.manager.num_warnings == 0;
    jpeg_destroy_decompress(&state);
    return is_whole;
}

bool read_png(const Bytes& file, Picture& picture, int& orientation) {
    png_image image;
    std::memset(&image, 0, sizeof image);
    image.version = PNG_IMAGE_VERSION;
    if (png_image_begin_read_from_memory(&image, file.data(), file.size()) == 0) return false;
    image.format = PNG_FORMAT_BGR;
    picture.height = image.height;
    picture.width = image.width;
    if (picture.height * picture.width > kMostPixels) {
        png_image_free(&image);
        return false;
    }
    picture.bgr.resize(PNG_IMAGE_SIZE(image));
    orientation = png_orientation(file);
    return png_image_finish_read(&image, nullptr, picture.bgr.data(), 0, nullptr) != 0;
}

// As viewers show it, turned by its EXIF orientation.
Picture read_picture(const char* path) {
    Bytes file;
    std::error_code is_missing;
    if (std::filesystem::is_regular_file(path, is_missing)) {
        std::ifstream stream(path, std::ios::binary);
        file.assign(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    }
    if (file.size() < 2) {
        throw boxwright::Error(std::string(path) + ": expected an image file, got none; check the path");
    }
    Picture picture;
    int orientation = 1;
    const bool is_jpeg = file[0] == 0xFF && file[1] == 0xD8;
    if (!(is_jpeg ? read_jpeg(file, picture, orientation) : read_png(file, picture, orientation))) {
        throw boxwright::Error(std::string(path) + ": expected a whole JPEG or PNG image of at most 2^30 pixels, got "
                                                       "another; convert it");
    }
    return turned(std::move(picture), orientation);
}

std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char character : text) {
        if (character == '"' || character == '\\') result += '\\';
        if (static_cast<unsigned char>(character) >= 0x20) result += character;
    }
    return result + '"';
}

void print(const std::vector<boxwright::Detection>& found, const std::vector<std::string>& class_names) {
    std::printf("[");
    for (size_t i = 0; i < found.size(); ++i) {
        const boxwright::Detection& one = found[i];
        const std::string name = quoted(class_names.at(static_cast<size_t>(one.class_id)));
        std::printf("%s\n  {\"box_xyxy\": [%.4f, %.4f, %.4f, %.4f], \"score\": %.6f, \"class_id\": %d, \"class_name\": %s}",
                    i == 0 ? "" : ",", one.box_xyxy[0], one.box_xyxy[1], one.box_xyxy[2], one.box_xyxy[3], one.score,
                    one.class_id, name.c_str());
    }
    std::printf("%s]\n", found.empty() ? "" : "\n");
}

// A threshold of the command line; none where it is empty.
std::optional<float> threshold(const char* name, const char* text) {
    if (*text == '\0') return std::nullopt;
    char* end = nullptr;
    const float value = std::strtof(text, &end);
    if (*end != '\0') {
        throw boxwright::Error(std::string(name) + ": expected a number in [0, 1], got " + text + "; correct it");
    }
    return value;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3 || argc > 6) {
        std::cerr << "usage: boxwright_detect MODEL IMAGE [CONF [ENGINE [IOU]]]\n";
        return 2;
    }
    try {
        boxwright::Options options;
        if (argc >= 4) options.score_threshold = threshold("CONF", argv[3]);
        if (argc >= 5) options.engine = argv[4];
        if (argc == 6) options.iou_threshold = threshold("IOU", argv[5]);
        const Picture picture = read_picture(argv[2]);
        boxwright::Detector detector(argv[1], options);
        print(detector.detect({picture.bgr.data(), picture.height, picture.width, 0}), detector.class_names());
    } catch (const boxwright::Error& error) {
        std::cerr << "boxwright_detect: " << error.what() << "\n";
        return 2;
    } catch (const std::bad_alloc&) {
        std::cerr << "boxwright_detect: " << argv[2] << ": expected an image that fits into memory, got a larger one; "
                  << "make it smaller\n";
        return 2;
    }
    return 0;
}
