// Inputs of the kernels made of arbitrary bytes, and what must hold of every result: shared by the fuzzers and the tests.
//
// Every array has exactly the size that the kernel may touch, so that AddressSanitizer sees a step beyond it.
#ifndef BOXWRIGHT_FUZZ_RANDOM_CASE_H
#define BOXWRIGHT_FUZZ_RANDOM_CASE_H

#include <cstddef>
#include <cstdint>
#include <vector>

namespace boxwright {
namespace fuzz {

// Hands out the bytes of a fuzzer's input; zeros after the end.
class Bytes {
   public:
    Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

    uint8_t byte() { return position_ < size_ ? data_[position_++] : 0; }

    // 0 to limit - 1.
    int64_t below(int64_t limit) {
        const int64_t value = byte() + 256 * (limit > 256 ? byte() : 0);
        return value % limit;
    }

    bool flag() { return (byte() & 1) != 0; }

    // Mostly tame numbers, now and then any bits.
    float number();

    bool is_empty() const { return position_ >= size_; }

   private:
    const uint8_t* data_;
    size_t size_;
    size_t position_ = 0;
};

// Runs the kernel on every instruction set with inputs made of the bytes, and aborts where a result breaks a rule or
// where two instruction sets differ. Attributes that do not fit are part of it: they must be refused, not crash.
// Returns a digest of the result, which is the same on every processor; 0 where the inputs were refused.
uint64_t check_decode_nms(const uint8_t* data, size_t size);
uint64_t check_letterbox(const uint8_t* data, size_t size);

}  // namespace fuzz
}  // namespace boxwright

#endif
